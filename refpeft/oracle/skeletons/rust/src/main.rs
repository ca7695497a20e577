//! A port of HF peft's Prompt Tuning and Prefix Tuning, as refpeft asks it.
//!
//! Here are the answers (this is where the port grows) and the protocol; `tensors` reads and writes files. README.md says
//! how to judge it, NEXT.md what to write next. Standard output belongs to the protocol: print with `eprintln!`.

mod tensors;

use serde_json::{json, Value};
use std::backtrace::Backtrace;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use tensors::{read_inputs, write_tensors, Real, Tensor};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

// ---------------------------------------------------------------------------------------------------------- answers

/// The answer to a question, computed in `R`: `write_tensors(…)`, or `json!({"document": {…}})`, `json!({"adapter": "a
/// directory below output"})`, `json!({"skipped": {"message": "…"}})` (`refpeft explain PP-3`).
fn answer<R: Real>(question: &str, request: &Value) -> Result<Value> {
    match question {
        "mask" => mask::<R>(request),
        _ => Ok(not_yet(question)),
    }
}

/// What `answer` computes.
const ANSWERED: &[&str] = &["mask"];

/// What is not written yet, in the order of writing, and the clause to read first.
const NOT_YET: &[(&str, &str)] = &[
    ("inputs", "PO-1"),
    ("prefix.encode", "PX-4"),
    ("attention", "AT-2"),
    ("forward", "TK-2"),
    ("gradients", "TK-3"),
    ("training", "TR-1"),
    ("generate", "GN-1"),
    ("checkpoint.load", "CK-3"),
    ("checkpoint.save", "CK-1"),
    ("config.resolve", "CF-3"),
    ("init", "PT-5"),
    ("random", "PT-4"),
];

/// The mask over virtual and real tokens: (batch, tokens) -> (batch, virtual + tokens).
fn mask<R: Real>(request: &Value) -> Result<Value> {
    let batch = size(request, "batch_size")?;
    let ones = size(request, "num_virtual_tokens")?;
    let inputs = read_inputs::<R>(request)?;
    let given = inputs.integers.get("attention_mask");
    let tokens = given.map_or(0, |mask| mask.shape[1]);
    let mut data = Vec::with_capacity(batch * (ones + tokens));
    for row in 0..batch {
        data.extend(vec![R::from_f64(1.0); ones]);
        if let Some(mask) = given {
            let own = &mask.data[row * tokens..(row + 1) * tokens];
            data.extend(own.iter().map(|&value| R::from_f64(value as f64)));
        }
    }
    let shape = vec![batch, ones + tokens];
    write_tensors(
        request,
        vec![("inputs.attention_mask".into(), Tensor { shape, data })],
    )
}

/// A number among the question's arguments.
fn size(request: &Value, name: &str) -> Result<usize> {
    let given = &request["arguments"][name];
    Ok(given
        .as_u64()
        .ok_or_else(|| format!("arguments.{name} is {given}, not a size"))? as usize)
}

fn not_yet(question: &str) -> Value {
    let clause = NOT_YET
        .iter()
        .find(|(name, _)| *name == question)
        .map_or("PP-4", |(_, clause)| clause);
    let why = format!("{question} is not written yet: read `refpeft explain {clause}`, then write it in src/main.rs");
    json!({"skipped": {"message": why}})
}

fn abilities() -> Value {
    let questions: Vec<&str> = ANSWERED
        .iter()
        .copied()
        .chain(NOT_YET.iter().map(|(name, _)| *name))
        .collect();
    json!({
        "version": 1,
        "implementation": {"name": env!("CARGO_PKG_NAME"), "language": "rust", "version": env!("CARGO_PKG_VERSION")},
        "families": ["gpt2"],
        "methods": ["prompt_tuning", "prefix_tuning"],
        "tasks": ["CAUSAL_LM"],
        "questions": questions,
        "profiles": ["float32", "float64"],
    })
}

// --------------------------------------------------------------------------------------------------------- protocol

/// The last panic, with the place where it happened.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn respond(message: &Value) -> Result<Value> {
    match message["cmd"].as_str() {
        Some("start") => Ok(abilities()),
        Some("run") => {
            let question = message["question"]
                .as_str()
                .ok_or("a run without a question")?;
            match message["dtype"].as_str() {
                Some("float32") => answer::<f32>(question, message),
                Some("float64") => answer::<f64>(question, message),
                _ => Err(format!("unknown dtype {}", message["dtype"]).into()),
            }
        }
        _ => Err(format!("unknown command {}", message["cmd"]).into()),
    }
}

/// The answer to a message, whatever happens: an error or a panic is answered as `errored`.
fn answer_to(message: &Value) -> Value {
    let mut answer = match panic::catch_unwind(AssertUnwindSafe(|| respond(message))) {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => json!({"errored": {"message": error.to_string()}}),
        Err(_) => {
            let traceback = PANIC.lock().map(|text| text.clone()).unwrap_or_default();
            json!({"errored": {"message": traceback.lines().take(2).collect::<Vec<_>>().join(" "), "traceback": traceback}})
        }
    };
    if message["cmd"] != "start" {
        answer["seq"] = message.get("seq").cloned().unwrap_or(json!(-1));
    }
    answer
}

fn main() -> Result<()> {
    panic::set_hook(Box::new(|panic| {
        if let Ok(mut text) = PANIC.lock() {
            *text = format!("{panic}\n{}", Backtrace::force_capture());
        }
    }));
    let mut answers = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let message: Value = serde_json::from_str(&line?)?;
        if message["cmd"] == "stop" {
            break;
        }
        writeln!(answers, "{}", answer_to(&message))?;
        answers.flush()?;
    }
    Ok(())
}
