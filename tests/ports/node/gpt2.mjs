// GPT-2 and safetensors in plain JavaScript: the parts of the port that know nothing about prompts or prefixes.
//
// A tensor is {shape, data}: data is a Float64Array in row-major order, whatever the type in the file, so everything is
// computed in float64. `dtype` ("I64" or "BOOL") is set only where an answer is not real-valued.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

// ---------------------------------------------------------------------------------------------------------- tensors

// A tensor of a shape whose value at index (i, j, …) is value(i, j, …).
export function build(shape, value, dtype) {
  const data = new Float64Array(shape.reduce((product, size) => product * size, 1));
  const index = shape.map(() => 0);
  for (let position = 0; position < data.length; position++) {
    data[position] = value(...index);
    for (let axis = shape.length - 1; axis >= 0 && ++index[axis] === shape[axis]; axis--) index[axis] = 0;
  }
  return { shape, data, dtype };
}

// The same shape with every value replaced.
export const map = (tensor, change) => ({ shape: tensor.shape, data: tensor.data.map((value) => change(value)) });

// (a, b) → (b, a)
export const transpose = ({ shape: [rows, columns], data }) =>
  build([columns, rows], (column, row) => data[row * columns + column]);

// Two tensors of the same shape, value by value.
const add = (left, right) => ({ shape: left.shape, data: left.data.map((value, i) => value + right.data[i]) });

// Rows of a table (rows, hidden), chosen by ids (batch, tokens) → (batch, tokens, hidden)
export function lookUp(table, ids) {
  const [rows, hidden] = table.shape;
  for (const id of ids.data) {
    if (!(Number.isInteger(id) && id >= 0 && id < rows)) throw new RangeError(`index ${id} is outside 0…${rows - 1}`);
  }
  return build([...ids.shape, hidden], (b, t, h) => table.data[ids.data[b * ids.shape[1] + t] * hidden + h]);
}

// (…, in) · (in, out) + (out) → (…, out)
export function affine(input, weight, bias) {
  const [inputs, outputs] = weight.shape;
  if (input.shape.at(-1) !== inputs) throw new RangeError(`cannot multiply (${input.shape}) by (${weight.shape})`);
  const data = new Float64Array((input.data.length / inputs) * outputs);
  for (let row = 0; row * inputs < input.data.length; row++) {
    for (let i = 0; i < inputs; i++) {
      const factor = input.data[row * inputs + i];
      for (let o = 0; o < outputs; o++) data[row * outputs + o] += factor * weight.data[i * outputs + o];
    }
    for (let o = 0; bias && o < outputs; o++) data[row * outputs + o] += bias.data[o];
  }
  return { shape: [...input.shape.slice(0, -1), outputs], data };
}

// ------------------------------------------------------------------------------------------------------ safetensors

// float16: one sign bit, five exponent bits, ten fraction bits
function float16(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

// bfloat16: the upper half of a float32
function bfloat16(bits) {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint16(0, bits);
  return view.getFloat32(0);
}

// type in the file → [bytes, read(view, offset), write(view, offset, value)]
const TYPES = {
  F64: [8, (v, at) => v.getFloat64(at, true), (v, at, x) => v.setFloat64(at, x, true)],
  F32: [4, (v, at) => v.getFloat32(at, true), (v, at, x) => v.setFloat32(at, x, true)],
  F16: [2, (v, at) => float16(v.getUint16(at, true))],
  BF16: [2, (v, at) => bfloat16(v.getUint16(at, true))],
  I64: [8, (v, at) => Number(v.getBigInt64(at, true)), (v, at, x) => v.setBigInt64(at, BigInt(x), true)],
  I32: [4, (v, at) => v.getInt32(at, true)],
  U8: [1, (v, at) => v.getUint8(at)],
  BOOL: [1, (v, at) => v.getUint8(at), (v, at, x) => v.setUint8(at, x ? 1 : 0)],
};

// A file → {name: tensor}. The file is: header length (uint64), header (JSON), data.
export function readSafetensors(path) {
  const file = readFileSync(path);
  const headerEnd = 8 + Number(file.readBigUInt64LE(0));
  const { __metadata__: _, ...header } = JSON.parse(file.toString("utf8", 8, headerEnd));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    if (!TYPES[dtype]) throw new TypeError(`${path}: tensor ${name} has the unknown type ${dtype}`);
    const [bytes, read] = TYPES[dtype];
    const view = new DataView(file.buffer, file.byteOffset + headerEnd + begin, end - begin);
    const data = Float64Array.from({ length: (end - begin) / bytes }, (_, i) => read(view, i * bytes));
    tensors[name] = { shape, data };
  }
  return tensors;
}

// {name: tensor} → a file; real-valued tensors in the type `real` ("F32" or "F64"), the others in their own.
export function writeSafetensors(path, tensors, real) {
  const typed = Object.entries(tensors).map(([name, { shape, data, dtype = real }]) => ({ name, shape, data, dtype }));
  typed.sort((left, right) => TYPES[right.dtype][0] - TYPES[left.dtype][0]); // widest first: every tensor is aligned
  const header = { __metadata__: { format: "pt" } };
  let size = 0;
  for (const { name, shape, data, dtype } of typed) {
    header[name] = { dtype, shape, data_offsets: [size, (size += data.length * TYPES[dtype][0])] };
  }
  let text = Buffer.from(JSON.stringify(header));
  text = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, " ")]);
  const body = Buffer.alloc(size), view = new DataView(body.buffer, body.byteOffset, size);
  for (const { name, data, dtype } of typed) {
    const [bytes, , write] = TYPES[dtype], begin = header[name].data_offsets[0];
    data.forEach((value, i) => write(view, begin + i * bytes, value));
  }
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(path, Buffer.concat([length, text, body]));
}

// ------------------------------------------------------------------------------------------------------------ GPT-2

// What HF's GPT2Config assumes where config.json is silent.
export const GPT2_DEFAULTS = {
  n_embd: 768, n_layer: 12, n_head: 12, n_inner: null, layer_norm_epsilon: 1e-5, activation_function: "gelu_new",
  scale_attn_weights: true, scale_attn_by_inverse_layer_idx: false, tie_word_embeddings: true,
};

// HF's names for the same things (attribute_map): a config.json may use either.
const GPT2_ALIASES = { hidden_size: "n_embd", num_hidden_layers: "n_layer", num_attention_heads: "n_head" };

// A score below every other: the smallest float32. The softmax gives it exactly 0.
const HIDDEN_SCORE = -3.4028234663852886e38;

// GPT-2's "new" gelu, the tanh approximation.
const geluNew = (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

const ACTIVATIONS = { gelu_new: geluNew, gelu_pytorch_tanh: geluNew, relu: (x) => Math.max(x, 0) };

// What HF has and this port has not: the question is skipped.
export class Unwritten extends Error {}

export class Gpt2 {
  // An unmodified HF directory: config.json and model.safetensors.
  constructor(directory) {
    this.config = { ...GPT2_DEFAULTS, ...JSON.parse(readFileSync(join(directory, "config.json"), "utf8")) };
    for (const [alias, name] of Object.entries(GPT2_ALIASES)) {
      if (alias in this.config) this.config[name] = this.config[alias];
    }
    if (this.config.model_type !== "gpt2") throw new TypeError(`not a GPT-2 model: ${this.config.model_type}`);
    this.activation = ACTIVATIONS[this.config.activation_function];
    if (!this.activation) throw new Unwritten(`the activation ${this.config.activation_function} is not written`);
    this.tensors = readSafetensors(join(directory, "model.safetensors"));
  }

  // A weight by its name without "transformer.", which a file saved from the bare GPT2Model leaves out.
  weight(name) {
    const tensor = this.tensors[`transformer.${name}`] ?? this.tensors[name];
    if (!tensor) throw new ReferenceError(`the model has no tensor ${name}`);
    return tensor;
  }

  // input_ids (batch, tokens) → (batch, tokens, hidden)
  tokenEmbeddings(ids) {
    return lookUp(this.weight("wte.weight"), ids);
  }

  // embeddings (batch, query, hidden), positions (batch, query) → (batch, query, hidden)
  addPositions(embeddings, positions) {
    return add(embeddings, lookUp(this.weight("wpe.weight"), positions));
  }

  // A layer norm over the last axis, any shape.
  norm(input, name) {
    const weight = this.weight(`${name}.weight`).data, bias = this.weight(`${name}.bias`).data, size = weight.length;
    const data = new Float64Array(input.data.length);
    for (let begin = 0; begin < data.length; begin += size) {
      const row = input.data.subarray(begin, begin + size);
      const mean = row.reduce((sum, x) => sum + x, 0) / size;
      const variance = row.reduce((sum, x) => sum + (x - mean) ** 2, 0) / size;
      const scale = 1 / Math.sqrt(variance + this.config.layer_norm_epsilon);
      row.forEach((x, i) => { data[begin + i] = (x - mean) * scale * weight[i] + bias[i]; });
    }
    return { shape: input.shape, data };
  }

  // (…, in) → (…, out); GPT-2's Conv1D stores its weight in × out
  conv1d(input, name) {
    return affine(input, this.weight(`${name}.weight`), this.weight(`${name}.bias`));
  }

  // What the products of queries and keys are multiplied by.
  scale(layer) {
    const base = this.config.scale_attn_weights ? (this.config.n_embd / this.config.n_head) ** -0.5 : 1;
    return this.config.scale_attn_by_inverse_layer_idx ? base / (layer + 1) : base;
  }

  // hidden (batch, query, hidden), already normed; past {key, value}, each (batch, heads, past, head_dim), or null;
  // visible (batch, query, key) → (batch, query, hidden)
  attention(layer, hidden, past, visible, record) {
    const name = `decoder.layers.${layer}.attention`;
    const heads = this.config.n_head, headDim = this.config.n_embd / heads;
    const projected = this.conv1d(hidden, `h.${layer}.attn.c_attn`); // (batch, query, 3·hidden): query, key, value
    const split = (third) => splitHeads(projected, third, heads, headDim);
    const query = record(`${name}.query`, split(0));
    const ownKey = record(`${name}.key`, split(1));
    const ownValue = record(`${name}.value`, split(2));
    const key = record(`${name}.key_states`, past ? concatenateKeys(past.key, ownKey) : ownKey);
    const value = record(`${name}.value_states`, past ? concatenateKeys(past.value, ownValue) : ownValue);
    const scores = record(`${name}.scores`, scoresOf(query, key, this.scale(layer), visible));
    const weights = record(`${name}.weights`, softmax(scores));
    const context = record(`${name}.context`, mergeHeads(weights, value));
    return record(`${name}.output`, this.conv1d(context, `h.${layer}.attn.c_proj`));
  }

  // embeddings (batch, query, hidden) with positions; visible (batch, query, key); past: one {key, value} a layer, or
  // null → logits (batch, query, vocab)
  forward(embeddings, visible, past, record) {
    let hidden = embeddings;
    for (let layer = 0; layer < this.config.n_layer; layer++) {
      if (past && !past[layer]) throw new RangeError(`the prefix has no layer ${layer}`);
      hidden = this.layer(layer, hidden, past && past[layer], visible, record);
    }
    const final = record("decoder.final_norm", this.norm(hidden, "ln_f"));
    return record("logits", affine(final, transpose(this.outputTable())));
  }

  // One decoder layer: (batch, query, hidden) → (batch, query, hidden)
  layer(layer, input, past, visible, record) {
    const name = `decoder.layers.${layer}`;
    const normed = record(`${name}.input_norm`, this.norm(input, `h.${layer}.ln_1`));
    const attended = this.attention(layer, normed, past, visible, record);
    const middle = record(`${name}.after_attention`, add(input, attended));
    const again = record(`${name}.post_attention_norm`, this.norm(middle, `h.${layer}.ln_2`));
    const inner = map(this.conv1d(again, `h.${layer}.mlp.c_fc`), this.activation);
    record(`${name}.mlp.activation`, inner);
    const outer = record(`${name}.mlp.output`, this.conv1d(inner, `h.${layer}.mlp.c_proj`));
    return record(`${name}.output`, add(middle, outer));
  }

  // The output table (vocab, hidden): the embedding table, unless config.json says that they are not tied.
  outputTable() {
    return this.config.tie_word_embeddings ? this.weight("wte.weight") : this.weight("lm_head.weight");
  }
}

// (batch, query, 3·heads·head_dim) → one third of it: (batch, heads, query, head_dim)
function splitHeads({ shape: [batch, query, width], data }, third, heads, headDim) {
  return build([batch, heads, query, headDim], (b, h, q, d) =>
    data[(b * query + q) * width + (third * heads + h) * headDim + d]);
}

// (batch, heads, past, head_dim), (batch, heads, query, head_dim) → (batch, heads, past + query, head_dim)
function concatenateKeys(past, own) {
  const [batch, heads, n, headDim] = past.shape, m = own.shape[2];
  if (own.shape[0] !== batch || own.shape[1] !== heads || own.shape[3] !== headDim) {
    throw new RangeError(`the prefix (${past.shape}) does not fit the keys (${own.shape})`);
  }
  return build([batch, heads, n + m, headDim], (b, h, k, d) => k < n
    ? past.data[((b * heads + h) * n + k) * headDim + d]
    : own.data[((b * heads + h) * m + k - n) * headDim + d]);
}

// query, key (batch, heads, ·, head_dim) → (batch, heads, query, key)
function scoresOf(query, key, scale, visible) {
  const [batch, heads, m, headDim] = query.shape, keys = key.shape[2];
  return build([batch, heads, m, keys], (b, h, q, k) => {
    if (!visible.data[(b * m + q) * keys + k]) return HIDDEN_SCORE;
    let sum = 0;
    for (let d = 0; d < headDim; d++) {
      const ofQuery = query.data[((b * heads + h) * m + q) * headDim + d];
      sum += ofQuery * key.data[((b * heads + h) * keys + k) * headDim + d];
    }
    return sum * scale;
  });
}

// Over the last axis, any shape.
function softmax({ shape, data }) {
  const size = shape.at(-1), weights = new Float64Array(data.length);
  for (let begin = 0; begin < data.length; begin += size) {
    const row = data.subarray(begin, begin + size);
    const largest = row.reduce((max, x) => Math.max(max, x), -Infinity);
    const sum = row.reduce((total, x) => total + Math.exp(x - largest), 0);
    row.forEach((x, i) => { weights[begin + i] = Math.exp(x - largest) / sum; });
  }
  return { shape, data: weights };
}

// weights (batch, heads, query, key), values (batch, heads, key, head_dim) → (batch, query, heads·head_dim)
function mergeHeads(weights, value) {
  const [batch, heads, m, keys] = weights.shape, headDim = value.shape[3];
  return build([batch, m, heads * headDim], (b, q, column) => {
    const h = Math.floor(column / headDim), d = column % headDim;
    let sum = 0;
    for (let k = 0; k < keys; k++) {
      const weight = weights.data[((b * heads + h) * m + q) * keys + k];
      sum += weight * value.data[((b * heads + h) * keys + k) * headDim + d];
    }
    return sum;
  });
}
