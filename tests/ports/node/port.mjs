// A port of HF peft's Prompt Tuning and Prefix Tuning for GPT-2 to plain JavaScript: an example of a port that answers
// refpeft's questions (specs/protocol.md). Run it as `node port.mjs`; it needs Node 20 and nothing else.
//
// From top to bottom: the configuration, the prompt, the prefix, the inputs, the loss, generation, and the protocol. Each
// decision that ports get wrong stands on a line of its own, marked "decision".

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beamSearch, greedy, readOptions } from "./generate.mjs";
import { Gpt2, GPT2_DEFAULTS, Unwritten, affine, build, map, readSafetensors, transpose, writeSafetensors } from "./gpt2.mjs";

// ---------------------------------------------------------------------------------------------------- configuration

const TASKS = ["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"];

// The fields of both methods, and what they are if the file is silent.
const COMMON_FIELDS = {
  task_type: null, peft_type: null, auto_mapping: null, peft_version: "0.21.2", base_model_name_or_path: null,
  revision: null, inference_mode: false, num_virtual_tokens: null, token_dim: null, num_transformer_submodules: null,
  num_attention_heads: null, num_layers: null, modules_to_save: null,
};

const FIELDS = {
  PROMPT_TUNING: {
    ...COMMON_FIELDS, prompt_tuning_init: "RANDOM", prompt_tuning_init_text: null, tokenizer_name_or_path: null,
    tokenizer_kwargs: null,
  },
  PREFIX_TUNING: { ...COMMON_FIELDS, init_weights: null, encoder_hidden_size: null, prefix_projection: false },
};

// Where families keep the same thing in their config.json, in the order in which HF looks.
const LAYERS_KEYS = ["num_hidden_layers", "num_layers", "n_layer"];
const WIDTH_KEYS = ["hidden_size", "n_embd", "d_model"];
const HEADS_KEYS = ["num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"];

class Rejected extends Error {}

// The first of the keys that a base configuration has.
function firstOf(base, keys, field) {
  const key = keys.find((candidate) => candidate in base);
  if (key === undefined) throw new Rejected(`Please specify \`${field}\` in \`peft_config\``);
  return base[key];
}

// The contents of an adapter_config.json → every field of its method, with the defaults; unknown keys are dropped.
function readConfig(given) {
  const fields = Object.hasOwn(FIELDS, given.peft_type) ? FIELDS[given.peft_type] : null;
  if (!fields) throw new Rejected(`unknown peft_type: ${given.peft_type}`);
  const config = { ...fields };
  for (const key of Object.keys(fields)) if (key in given) config[key] = given[key];
  config.peft_version ??= fields.peft_version;
  checkConfig(config);
  return config;
}

// What HF refuses. It accepts much else: an unknown initialisation, say, counts as RANDOM.
function checkConfig(config) {
  const { task_type: task, tokenizer_kwargs: kwargs } = config, text = config.prompt_tuning_init === "TEXT";
  if (task !== null && !TASKS.includes(task)) throw new Rejected(`Invalid task type: '${task}'`);
  if (text && !config.tokenizer_name_or_path) throw new Rejected("TEXT needs tokenizer_name_or_path");
  if (text && config.prompt_tuning_init_text === null) throw new Rejected("TEXT needs prompt_tuning_init_text");
  if (!text && Object.keys(kwargs ?? {}).length) throw new Rejected("tokenizer_kwargs are for TEXT only");
}

// What is missing is taken from the base model's config.json, which need not state what is GPT-2's default.
function fillIn(config, baseConfig) {
  const outer = baseConfig.model_type === "gpt2" ? { ...GPT2_DEFAULTS, ...baseConfig } : baseConfig;
  const base = outer.text_config ?? outer;
  config.num_layers ??= outer.num_hidden_layers ?? firstOf(base, LAYERS_KEYS, "num_layers");
  config.token_dim ??= firstOf(base, WIDTH_KEYS, "token_dim");
  config.num_attention_heads ??= firstOf(base, HEADS_KEYS, "num_attention_heads");
  if (config.peft_type === "PREFIX_TUNING" && "num_key_value_heads" in base) shareKeys(config, base);
  if (config.peft_type === "PREFIX_TUNING") config.encoder_hidden_size ??= config.token_dim; // after shareKeys
  config.num_transformer_submodules ??= config.task_type === "SEQ_2_SEQ_LM" ? 2 : 1;
  return config;
}

// Grouped-query attention: a prefix has key-value heads only. This overwrites even what the user gave.
function shareKeys(config, base) {
  const headDim = base.head_dim ?? Math.floor(config.token_dim / config.num_attention_heads);
  config.token_dim = headDim * base.num_key_value_heads;
  config.num_attention_heads = base.num_key_value_heads;
}

// Which configuration results, or that there is none.
function answerConfigResolve({ arguments: { config, base_config: base } }) {
  try {
    const resolved = readConfig(config);
    return { document: { config: base ? fillIn(resolved, base) : resolved } };
  } catch (error) {
    if (!(error instanceof Rejected)) throw error;
    return { document: { rejected: true, message: error.message } };
  }
}

// ----------------------------------------------------------------------------------------------------------- prompt

// The adapter's parameter that either method has.
const TABLE = "prompt_encoder.embedding.weight";

// How many rows the table has: for a prompt, those of a second submodule (an encoder-decoder model) as well.
function tableRows({ peft_type: type, num_virtual_tokens: n, num_transformer_submodules: submodules }) {
  return type === "PROMPT_TUNING" ? n * submodules : n;
}

// A text's ids, however many → as many as the table has rows
function fitIds(ids, rows) {
  return Array.from({ length: rows }, (_, row) => ids[row % ids.length]); // decision: trimmed on the right, or tiled
}

// The answer where torch's random generator is needed.
const RANDOM = { skipped: { message: "this port has no torch random numbers" } };

// The initial values that do not depend on a random generator.
function answerInit(question, record) {
  const { config, inputs, model } = question;
  const name = `parameters.${TABLE}`;
  const trains = !config.inference_mode; // in inference mode nothing is read from a text, and there is no projection
  if (config.peft_type === "PROMPT_TUNING") {
    if (config.prompt_tuning_init !== "TEXT" || !trains) return RANDOM;
    const textIds = [...inputs.text_token_ids.data]; // decision: special tokens are kept
    const ids = fitIds(textIds, tableRows(config));
    record("prompt.init_token_ids", { shape: [ids.length], data: ids, dtype: "I64" });
    const rows = new Gpt2(model).tokenEmbeddings({ shape: [1, ids.length], data: ids });
    record(name, { shape: rows.shape.slice(1), data: rows.data });
  } else {
    const projected = config.prefix_projection && trains; // its embedding and first layer are random even for "zero"
    if (config.init_weights !== "zero" || projected) return RANDOM;
    record(name, build([tableRows(config), 2 * config.num_layers * config.token_dim], () => 0));
  }
}

// The table (virtual, hidden), the same for every sequence → (batch, virtual, hidden)
function promptEmbeddings(table, batch) {
  const [n, hidden] = table.shape;
  return build([batch, n, hidden], (b, t, h) => table.data[t * hidden + h]);
}

// (batch, virtual, hidden), (batch, tokens, hidden) → (batch, virtual + tokens, hidden), the prompt first
function prependPrompt(prompt, tokens) {
  const [batch, n, hidden] = prompt.shape, m = tokens.shape[1];
  if (tokens.shape[2] !== hidden) throw new RangeError(`a prompt of width ${hidden} does not fit ${tokens.shape[2]}`);
  return build([batch, n + m, hidden], (b, t, h) =>
    t < n ? prompt.data[(b * n + t) * hidden + h] : tokens.data[(b * m + t - n) * hidden + h]);
}

// ----------------------------------------------------------------------------------------------------------- prefix

// The adapter's parameters → the flat table (virtual, 2·layers·kv_heads·head_dim)
function flatPrefix(config, parameters, record) {
  const table = parameters[TABLE];
  const runsNetwork = config.prefix_projection && !config.inference_mode;
  const flat = runsNetwork ? project(table, parameters, record) : table; // decision: what was loaded is already flat
  return record("prefix.flat", flat);
}

// (virtual, token_dim) → (virtual, encoder_hidden) → (virtual, 2·layers·kv_heads·head_dim)
function project(table, parameters, record) {
  const parameter = (name) => parameters[`prompt_encoder.transform.${name}`];
  const first = transpose(parameter("0.weight")); // decision: torch stores a linear layer's weight out × in
  const hidden = record("prefix.projection_hidden", affine(table, first, parameter("0.bias")));
  const activation = map(hidden, Math.tanh); // decision: tanh
  record("prefix.projection_activation", activation);
  return affine(activation, transpose(parameter("2.weight")), parameter("2.bias"));
}

// One of the 2·layers blocks of the flat table, for every sequence → (batch, kv_heads, virtual, head_dim)
function prefixBlock(config, flat, block, batch) {
  const n = config.num_virtual_tokens, heads = config.num_attention_heads, headDim = config.token_dim / heads;
  const width = flat.shape[1], size = heads * headDim;
  return build([batch, heads, n, headDim], (_, head, position, channel) => {
    const token = position; // decision: virtual tokens keep their order
    const within = head * headDim + channel; // decision: heads are outermost within a block
    const cell = token * width + block * size + within; // decision: a virtual token is a row of the flat table
    return flat.data[cell];
  });
}

// The adapter's parameters → one {key, value} a layer, each (batch, kv_heads, virtual, head_dim)
function encodePrefix(config, parameters, batch, record) {
  const flat = flatPrefix(config, parameters, record), layers = config.num_layers;
  if (flat.shape[0] !== config.num_virtual_tokens || flat.shape[1] !== 2 * layers * config.token_dim) {
    throw new RangeError(`a prefix of shape (${flat.shape}) does not fit the configuration`);
  }
  return Array.from({ length: layers }, (_, layer) => {
    const blocks = [2 * layer, 2 * layer + 1]; // decision: a layer's two blocks are neighbours
    const [keyBlock, valueBlock] = blocks; // decision: the key before the value
    const key = record(`prefix.layers.${layer}.key`, prefixBlock(config, flat, keyBlock, batch));
    const value = record(`prefix.layers.${layer}.value`, prefixBlock(config, flat, valueBlock, batch));
    return { key, value };
  });
}

// ----------------------------------------------------------------------------------------------------------- inputs

// mask (batch, tokens) or undefined → (batch, virtual + tokens)
function extendMask(mask, batch, virtual) {
  const n = virtual; // decision: the mask is extended by n ones
  const m = mask ? mask.shape[1] : 0;
  return build([batch, n + m], (b, k) => (k < n ? 1 : mask.data[b * m + k - n]));
}

// labels (batch, tokens) → (batch, virtual + tokens)
function padLabels(labels, n) {
  const [batch, m] = labels.shape;
  return build([batch, n + m], (b, t) => (t < n ? -100 : labels.data[b * m + t - n]), "I64");
}

// Prompt tuning: 0 … n + m − 1, whatever the caller gave → (batch, virtual + tokens)
const promptPositions = (batch, query) => build([batch, query], (b, q) => q, "I64");

// Prefix tuning: the given positions, or 0 … m − 1, after those of the prefix → (batch, tokens)
function prefixPositions({ shape: [batch, m] }, given, n) {
  const offset = n; // decision: positions begin after the virtual tokens
  return build([batch, m], (b, t) => offset + (given ? given.data[b * m + t] : t), "I64");
}

// Which key each query sees → (batch, query, key). Keys beyond the end of a mask are hidden.
function visibility(batch, query, past, mask) {
  const width = mask?.shape[1];
  return build([batch, query, past + query], (b, q, k) =>
    k <= past + q && (!mask || (k < width && mask.data[b * width + k] !== 0)) ? 1 : 0, "BOOL");
}

// Everything that enters the decoder, for either method.
function prepareInputs({ config, inputs }, model, parameters, record) {
  const ids = inputs.input_ids, batch = ids.shape[0], n = config.num_virtual_tokens;
  const prompt = config.peft_type === "PROMPT_TUNING";
  let embeddings = record("inputs.token_embeddings", model.tokenEmbeddings(ids));
  let mask = inputs.attention_mask, labels = inputs.labels;
  if (mask) mask = record("inputs.attention_mask", extendMask(mask, batch, n));
  if (prompt) {
    const virtual = record("prompt.embeddings", promptEmbeddings(parameters[TABLE], batch));
    embeddings = record("inputs.embeddings", prependPrompt(virtual, embeddings));
    if (labels) labels = record("inputs.labels", padLabels(labels, n));
  }
  const query = embeddings.shape[1];
  const positions = prompt ? promptPositions(batch, query) : prefixPositions(ids, inputs.position_ids, n);
  record("inputs.position_ids", positions);
  embeddings = record("decoder.embeddings", model.addPositions(embeddings, positions));
  const visible = record("decoder.visible", visibility(batch, query, prompt ? 0 : n, mask));
  return { embeddings, visible, labels };
}

// ---------------------------------------------------------------------------------------------------- loss, forward

// The mean cross-entropy of the label after each query, from the query `from` on; labels −100 do not count.
function causalLoss(logits, labels, from) {
  const [batch, query, vocab] = logits.shape;
  if (labels.shape[1] !== query) throw new RangeError(`labels (${labels.shape}) do not fit logits (${logits.shape})`);
  let sum = 0, count = 0;
  for (let b = 0; b < batch; b++) {
    for (let q = from; q + 1 < query; q++) {
      const label = labels.data[b * query + q + 1];
      if (label === -100) continue;
      if (!(label >= 0 && label < vocab)) throw new RangeError(`label ${label} is outside 0…${vocab - 1}`);
      const row = logits.data.subarray((b * query + q) * vocab, (b * query + q + 1) * vocab);
      const largest = row.reduce((max, x) => Math.max(max, x), -Infinity);
      sum += largest + Math.log(row.reduce((total, x) => total + Math.exp(x - largest), 0)) - row[label];
      count++;
    }
  }
  return { shape: [], data: Float64Array.of(sum / count) }; // without any label: NaN, as HF's
}

// The whole model: logits (batch, query, vocab), and the loss if there are labels.
function runModel(question, parameters, record) {
  const { config, inputs } = question, model = new Gpt2(question.model);
  const prefix = config.peft_type === "PREFIX_TUNING";
  const past = prefix ? encodePrefix(config, parameters, inputs.input_ids.shape[0], record) : null;
  const { embeddings, visible, labels } = prepareInputs(question, model, parameters, record);
  const logits = model.forward(embeddings, visible, past, record);
  const from = 0; // decision: the last virtual token predicts the first real one, so a prompt's loss has m terms
  if (labels) record("loss", causalLoss(logits, labels, from));
}

// ------------------------------------------------------------------------------------------------------- generation

// (batch, tokens) → 0 where the token to pad with stands
function inferMask(ids, { ends, pad }) {
  const infers = pad !== null && !ends.includes(pad); // decision: not if that token also ends a row
  return { ...map(ids, (id) => (infers && id === pad ? 0 : 1)), dtype: "I64" };
}

// mask (batch, tokens) → how many tokens stand before each; 0 at masked positions
function countTokens({ shape: [batch, m], data }) {
  const before = (b, t) => data.subarray(b * m, b * m + t).reduce((sum, x) => sum + x, 0);
  return build([batch, m], (b, t) => (data[b * m + t] ? before(b, t) : 0), "I64");
}

// Rows of a tensor of any shape, in the order given, which may repeat them.
function takeRows({ shape: [rows, ...rest], data, dtype }, order) {
  const size = data.length / rows, taken = new Float64Array(order.length * size);
  order.forEach((row, i) => taken.set(data.subarray(row * size, (row + 1) * size), i * size));
  return { shape: [order.length, ...rest], data: taken, dtype };
}

// (rows, length) → (rows, length + 1)
function appendColumn({ shape: [rows, length], data }, value) {
  return build([rows, length + 1], (row, t) => (t < length ? data[row * length + t] : value(data[row * length + t - 1])));
}

// (rows, length) → (rows, count)
const lastColumns = ({ shape: [rows, length], data }, count) =>
  build([rows, count], (row, t) => data[row * length + length - count + t]);

// The model, step by step: it keeps keys and values, the mask and the positions between the steps.
class Decoder {
  constructor({ config, inputs, model }, options, record) {
    Object.assign(this, { config, record, model: new Gpt2(model), parameters: parametersOf(inputs), past: null });
    const ids = inputs.input_ids;
    const mask = inputs.attention_mask ?? record("generation.attention_mask", inferMask(ids, options));
    const positions = record("generation.position_ids", countTokens(mask)); // decision: positions skip the padding
    const order = Array.from({ length: ids.shape[0] * options.beams }, (_, row) => Math.floor(row / options.beams));
    this.mask = mask.data.includes(0) ? takeRows(mask, order) : null;
    this.positions = takeRows(positions, order);
  }

  // Rows of token ids → the logits behind each, an array a row
  next(sequences) {
    const { config, model, record } = this, rows = sequences.length, n = config.num_virtual_tokens;
    const prefix = config.peft_type === "PREFIX_TUNING", first = this.past === null;
    const fed = first ? sequences : sequences.map((row) => row.slice(-1)); // the cache holds the others
    const ids = build([rows, fed[0].length], (row, t) => fed[row][t], "I64");
    let embeddings = record("inputs.token_embeddings", model.tokenEmbeddings(ids));
    const mask = this.mask && record("inputs.attention_mask", extendMask(this.mask, rows, n));
    const past = first && prefix ? encodePrefix(config, this.parameters, rows, record) : this.past; // decision: once
    if (first && !prefix) {
      const virtual = record("prompt.embeddings", promptEmbeddings(this.parameters[TABLE], rows));
      embeddings = record("inputs.embeddings", prependPrompt(virtual, embeddings));
    }
    const query = embeddings.shape[1], before = past ? past[0].key.shape[2] : 0;
    const positions = prefix
      ? prefixPositions(ids, lastColumns(this.positions, query), n)
      : build([rows, query], (_, q) => before + q, "I64"); // decision: behind a prompt, positions count the padding
    record("inputs.position_ids", positions);
    embeddings = record("decoder.embeddings", model.addPositions(embeddings, positions));
    const visible = record("decoder.visible", visibility(rows, query, before, mask));
    const logits = this.remember((keep) => model.forward(embeddings, visible, past, keep));
    const textMask = this.mask; // decision: what grows is the text's own mask
    this.mask = textMask && appendColumn(textMask, () => 1);
    this.positions = appendColumn(this.positions, (last) => last + 1);
    this.record = (_, tensor) => tensor; // the stages are those of the first step
    const vocab = logits.shape[2], behind = (row) => ((row + 1) * query - 1) * vocab;
    return sequences.map((_, row) => logits.data.subarray(behind(row), behind(row) + vocab));
  }

  // Run the model, and keep each layer's keys and values, which it records on its way.
  remember(run) {
    const cache = Array.from({ length: this.model.config.n_layer }, () => ({}));
    const logits = run((name, tensor) => {
      const [, layer, half] = name.match(/layers\.(\d+)\.attention\.(key|value)_states$/) ?? [];
      if (layer) cache[layer][half] = tensor;
      return this.record(name, tensor);
    });
    this.past = cache;
    return logits;
  }

  // Row i goes on from what was row order[i].
  reorder(order) {
    const taken = order; // decision: the cache follows the beams, the prefix's rows with the others
    this.past = this.past.map(({ key, value }) => ({ key: takeRows(key, taken), value: takeRows(value, taken) }));
  }
}

// -------------------------------------------------------------------------------------------------------- questions

// The adapter's parameters among the inputs, under HF's names.
function parametersOf(inputs) {
  const names = Object.keys(inputs).filter((name) => name.startsWith("parameters."));
  return Object.fromEntries(names.map((name) => [name.slice("parameters.".length), inputs[name]]));
}

function answerMask({ arguments: { batch_size: batch, num_virtual_tokens: n }, inputs }, record) {
  record("inputs.attention_mask", extendMask(inputs.attention_mask, batch, n));
}

function answerPrefixEncode({ arguments: { batch_size: batch }, config, inputs }, record) {
  encodePrefix(config, parametersOf(inputs), batch, record);
}

function answerInputs(question, record) {
  prepareInputs(question, new Gpt2(question.model), parametersOf(question.inputs), record);
}

function answerAttention({ arguments: { layer }, inputs, model }, record) {
  const past = inputs["past.key"] ? { key: inputs["past.key"], value: inputs["past.value"] } : null;
  new Gpt2(model).attention(layer, inputs.hidden, past, inputs.visible, record);
}

function answerForward(question, record) {
  runModel(question, parametersOf(question.inputs), record);
}

function answerGenerate(question, record) {
  const options = readOptions(question), { shape: [batch, m], data } = question.inputs.input_ids;
  const rows = Array.from({ length: batch }, (_, b) => [...data.subarray(b * m, (b + 1) * m)]);
  const search = options.beams > 1 ? beamSearch : greedy;
  search(new Decoder(question, options, record), rows, options, record);
}

// An adapter as HF writes it: the table alone, for a projected prefix the projected one.
function answerCheckpointLoad(question, record) {
  const written = JSON.parse(readFileSync(join(question.adapter, "adapter_config.json"), "utf8"));
  const base = JSON.parse(readFileSync(join(question.model, "config.json"), "utf8"));
  const config = { ...fillIn(readConfig(written), base), inference_mode: true };
  const table = readSafetensors(join(question.adapter, "adapter_model.safetensors")).prompt_embeddings;
  const rows = tableRows(config);
  if (table?.shape[0] !== rows) throw new RangeError(`prompt_embeddings (${table?.shape}) do not have ${rows} rows`);
  runModel({ ...question, config }, { [TABLE]: table }, record);
}

// As Python's json.dumps(…, indent=2, sort_keys=True) writes it: ASCII only.
function toJson(value) {
  const isObject = (part) => part !== null && typeof part === "object" && !Array.isArray(part);
  const sorted = (_, part) => (isObject(part) ? Object.fromEntries(Object.entries(part).sort()) : part);
  const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value, sorted, 2).replace(/[\u007f-\uffff]/g, escaped);
}

// The other way round: what is written is the table that a loaded adapter uses as it is.
function answerCheckpointSave({ config, dtype, inputs, output }) {
  const parameters = parametersOf(inputs), adapter = join(output, "adapter");
  const prompt = config.peft_type === "PROMPT_TUNING", keep = (_, tensor) => tensor;
  const prompt_embeddings = prompt ? parameters[TABLE] : flatPrefix(config, parameters, keep);
  mkdirSync(adapter);
  writeFileSync(join(adapter, "adapter_config.json"), toJson({ ...readConfig(config), inference_mode: true }));
  writeSafetensors(join(adapter, "adapter_model.safetensors"), { prompt_embeddings }, REAL[dtype]);
  return { adapter: "adapter" };
}

// --------------------------------------------------------------------------------------------------------- protocol

const QUESTIONS = {
  "config.resolve": answerConfigResolve,
  init: answerInit,
  mask: answerMask,
  "prefix.encode": answerPrefixEncode,
  inputs: answerInputs,
  attention: answerAttention,
  forward: answerForward,
  generate: answerGenerate,
  "checkpoint.load": answerCheckpointLoad,
  "checkpoint.save": answerCheckpointSave,
};

// How real numbers are answered; they are computed in float64 in either case.
const REAL = { float32: "F32", float64: "F64" };

const CAPABILITIES = {
  version: 1,
  implementation: { name: "node-example", language: "javascript", version: "1" },
  families: ["gpt2"],
  methods: ["prompt_tuning", "prefix_tuning"],
  tasks: ["CAUSAL_LM"],
  questions: Object.keys(QUESTIONS),
  profiles: Object.keys(REAL),
};

// One question → its answer, less `seq`. A handler records stages, or returns another kind of answer.
function run(message) {
  const handler = Object.hasOwn(QUESTIONS, message.question) ? QUESTIONS[message.question] : null;
  if (!handler) return { skipped: { message: `${message.question} is not implemented` } };
  const stages = {}, record = (name, tensor) => (stages[name] = tensor);
  const inputs = message.inputs ? readSafetensors(message.inputs) : {};
  const answer = handler({ ...message, inputs }, record);
  if (answer) return answer;
  writeSafetensors(join(message.output, "answer.safetensors"), stages, REAL[message.dtype]);
  return { tensors: "answer.safetensors" };
}

// One line of input → the line to answer, or null to stop.
function respond(line) {
  let message = null;
  try {
    message = JSON.parse(line);
    if (message.cmd === "stop") return null;
    if (message.cmd === "start") return CAPABILITIES;
    if (message.cmd === "run") return { seq: message.seq, ...run(message) };
    throw new Error(`unknown command: ${message.cmd}`);
  } catch (error) {
    if (error instanceof Unwritten) return { seq: message.seq, skipped: { message: error.message } };
    return { seq: message?.seq ?? -1, errored: { message: String(error.message), traceback: String(error.stack) } };
  }
}

// Standard input line by line. (Node's readline also ends lines at U+2028, which JSON may contain.)
async function* lines(stream) {
  let rest = "";
  for await (const chunk of stream.setEncoding("utf8")) {
    const parts = (rest + chunk).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

for await (const line of lines(process.stdin)) {
  const answer = respond(line);
  if (answer === null) break;
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
