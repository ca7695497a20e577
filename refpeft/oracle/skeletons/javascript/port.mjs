// A port of HF peft's Prompt Tuning and Prefix Tuning, as refpeft asks it. It needs Node 20 and nothing else.
//
// From top to bottom: the answers (this is where the port grows), tensors in files, the protocol. README.md says how to
// judge it, NEXT.md what to write next.

import { join } from "node:path";
import { readSafetensors, writeSafetensors } from "./safetensors.mjs";

// ---------------------------------------------------------------------------------------------------------- answers

// The mask over virtual and real tokens: (batch, tokens) → (batch, virtual + tokens)
function mask(request) {
  const { batch_size: batch, num_virtual_tokens: virtual } = request.arguments;
  const given = readInputs(request).attention_mask; // undefined if there is none
  const tokens = given ? given.shape[1] : 0;
  const extended = zeros(request, [batch, virtual + tokens]);
  for (let row = 0; row < batch; row++) {
    const begin = row * (virtual + tokens);
    extended.data.fill(1, begin, begin + virtual);
    for (let i = 0; i < tokens; i++) extended.data[begin + virtual + i] = given.data[row * tokens + i];
  }
  return writeTensors(request, { "inputs.attention_mask": extended });
}

// A question's function gets the message `run` and returns its answer: writeTensors(…), or {document: {…}},
// {adapter: "a directory below output"}, {skipped: {message: "…"}} (`refpeft explain PP-3`).
const ANSWERS = new Map([
  ["mask", mask],
]);

// What is not written yet, in the order of writing, and the clause to read first.
const NOT_YET = new Map([
  ["inputs", "PO-1"],
  ["prefix.encode", "PX-4"],
  ["attention", "AT-2"],
  ["forward", "TK-2"],
  ["gradients", "TK-3"],
  ["training", "TR-1"],
  ["generate", "GN-1"],
  ["checkpoint.load", "CK-3"],
  ["checkpoint.save", "CK-1"],
  ["config.resolve", "CF-3"],
  ["init", "PT-5"],
  ["random", "PT-4"],
]);

const ABILITIES = {
  version: 1,
  implementation: { name: "my-port", language: "javascript", version: "0.1" },
  families: ["gpt2"],
  methods: ["prompt_tuning", "prefix_tuning"],
  tasks: ["CAUSAL_LM"],
  questions: [...ANSWERS.keys(), ...NOT_YET.keys()],
  profiles: ["float32", "float64"],
};

// ---------------------------------------------------------------------------------------------------------- tensors

// Arrays of real numbers in the format that a request wants.
const REAL = { float32: Float32Array, float64: Float64Array };

// A tensor is {shape, data}, row by row.
function zeros(request, shape) {
  return { shape, data: new REAL[request.dtype](shape.reduce((product, size) => product * size, 1)) };
}

// The input tensors by name: real numbers in the wanted format, integers and booleans as numbers.
function readInputs(request) {
  return request.inputs === null ? {} : readSafetensors(request.inputs, REAL[request.dtype]);
}

// Writes an answer's tensors by name, and says where they are.
function writeTensors(request, tensors) {
  writeSafetensors(join(request.output, "answer.safetensors"), tensors);
  return { tensors: "answer.safetensors" };
}

// --------------------------------------------------------------------------------------------------------- protocol

function respond(message) {
  const { cmd, seq = -1, question } = message;
  if (cmd === "start") return ABILITIES;
  if (cmd !== "run") return { seq, errored: { message: `unknown command ${cmd}` } };
  if (ANSWERS.has(question)) return { seq, ...ANSWERS.get(question)(message) };
  const clause = NOT_YET.get(question) ?? "PP-4";
  const why = `${question} is not written yet: read \`refpeft explain ${clause}\`, then write it in port.mjs`;
  return { seq, skipped: { message: why } };
}

// The answer to a line, or null if there is none.
function answerTo(line) {
  let message = {};
  try {
    message = JSON.parse(line);
    return message.cmd === "stop" ? null : respond(message);
  } catch (error) {
    return { seq: message.seq ?? -1, errored: { message: `${error}`, traceback: error.stack } };
  }
}

// Answers each line of standard input with a line on standard output. Only a line feed ends a line.
async function main() {
  console.log = console.error; // what is printed elsewhere must not come between the answers
  let rest = "";
  process.stdin.setEncoding("utf8");
  for await (const chunk of process.stdin) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const answer = answerTo(line);
      if (answer === null) return;
      process.stdout.write(`${JSON.stringify(answer)}\n`);
    }
  }
}

await main();
