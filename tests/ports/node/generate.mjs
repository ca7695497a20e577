// How tokens are chosen: greedily, or with beams. This file knows nothing about prompts, prefixes or caches; it asks a
// decoder for the scores behind each row (`decoder.next`), and tells it which rows go on (`decoder.reorder`).

import { build } from "./gpt2.mjs";

// The arguments of the question, as HF's generate understands them.
export function readOptions({ arguments: given }) {
  const ends = given.eos_token_id === null ? [] : [given.eos_token_id].flat();
  return {
    longest: given.max_new_tokens,
    shortest: given.min_new_tokens ?? 0,
    beams: given.num_beams ?? 1,
    returned: given.num_return_sequences ?? 1,
    penalty: given.length_penalty ?? 1,
    early: given.early_stopping ?? false,
    forcedEnd: given.forced_eos_token_id ?? null, // the last token there is room for
    ends, // tokens that end a row
    pad: given.pad_token_id ?? ends[0] ?? null, // decision: rows are filled with the first end if no pad token is given
  };
}

// The places of the `count` largest scores, the largest first; of equal ones the first.
function largest(scores, count) {
  const places = Array.from(scores.keys());
  return places.sort((left, right) => scores[right] - scores[left] || left - right).slice(0, count);
}

// What a row's next token is chosen by: an end cannot be chosen too early, and a forced one must be chosen last.
function constrain(scores, newTokens, { ends, shortest, longest, forcedEnd }) {
  if (newTokens < shortest) for (const end of ends) scores[end] = -Infinity;
  if (forcedEnd === null || newTokens + 1 < longest) return scores;
  return scores.map((_, token) => (token === forcedEnd ? 0 : -Infinity));
}

function logSoftmax(logits) {
  const most = logits.reduce((max, x) => Math.max(max, x), -Infinity);
  const total = most + Math.log(logits.reduce((sum, x) => sum + Math.exp(x - most), 0));
  return logits.map((x) => x - total);
}

// Rows of token ids, filled to the same length → (rows, length)
function toTensor(rows, filler) {
  const length = Math.max(...rows.map((row) => row.length));
  return build([rows.length, length], (row, t) => rows[row][t] ?? filler, "I64");
}

// The likeliest token at each step. rows: the texts' ids, one array a row.
export function greedy(decoder, rows, options, record) {
  const { ends, longest, pad } = options, steps = [];
  const sequences = rows.map((row) => [...row]), ended = rows.map(() => false);
  while (steps.length < longest && ended.includes(false)) {
    const logits = decoder.next(sequences);
    sequences.forEach((sequence, row) => {
      const [best] = largest(constrain([...logits[row]], steps.length, options), 1);
      sequence.push(ended[row] ? pad : best); // decision: a row that has ended is filled, whatever its scores
      ended[row] ||= ends.includes(best);
    });
    steps.push(logits);
  }
  const shape = [rows.length, steps.length, steps[0][0].length];
  record("generation.logits", build(shape, (row, step, token) => steps[step][row][token]));
  record("sequences", toTensor(sequences, pad));
}

// The `returned` best of `beams` continuations of each row. The decoder's rows are each text `beams` times.
export function beamSearch(decoder, rows, options, record) {
  const { beams, ends, longest, returned, early } = options;
  const searches = rows.map((text) => ({
    // decision: the first of the equal beams starts ahead, or all would choose the same tokens
    running: Array.from({ length: beams }, (_, beam) => ({ tokens: text, score: beam ? -1e9 : 0 })),
    finished: [], // the best first
    open: true,
  }));
  let goesOn = true;
  for (let newTokens = 1; goesOn; newTokens++) {
    const logits = decoder.next(searches.flatMap(({ running }) => running.map(({ tokens }) => tokens)));
    const candidates = searches.map((search, row) => continuations(search, logits.slice(row * beams), newTokens, options));
    searches.forEach((search, row) => {
      finish(search, candidates[row], newTokens, options);
      const alive = candidates[row].filter(({ ended }) => !ended);
      search.running = (alive.length ? alive : candidates[row]).slice(0, beams);
      search.open &&= mayImprove(search, newTokens, options);
    });
    decoder.reorder(searches.flatMap(({ running }, row) => running.map(({ beam }) => row * beams + beam)));
    const allFull = early === true && searches.every(({ finished }) => finished.length === beams);
    const allEnded = candidates.flat().every(({ ended }) => ended);
    goesOn = searches.some(({ open }) => open) && !allFull && !allEnded;
  }
  const best = searches.flatMap(({ finished }) => finished.slice(0, returned));
  const filler = options.pad || ends[0]; // as HF: a pad token 0 counts as none
  record("sequences", toTensor(best.map(({ tokens }) => tokens), filler));
  record("sequences_scores", build([best.length], (row) => best[row].score));
}

// A row's best continuations over all its beams: enough that `beams` of them go on even if the others end.
function continuations({ running }, logits, newTokens, options) {
  const { beams, ends, longest } = options, kept = beams * Math.max(2, 1 + ends.length);
  const scores = running.flatMap(({ score }, beam) =>
    [...constrain(logSoftmax(logits[beam]), newTokens - 1, options)].map((x) => score + x));
  const vocabulary = logits[0].length;
  return largest(scores, kept).map((place) => {
    const beam = Math.floor(place / vocabulary), token = place % vocabulary;
    const ended = ends.includes(token) || newTokens === longest;
    return { beam, tokens: [...running[beam].tokens, token], score: scores[place], ended };
  });
}

// Candidates that end join the finished beams, if they are among the first `beams` of all candidates.
function finish(search, candidates, newTokens, { beams, penalty, early }) {
  if (!search.open || (early === true && search.finished.length === beams)) return;
  const divisor = newTokens ** penalty; // decision: the new tokens alone count, the end among them
  const ending = candidates.slice(0, beams).filter(({ ended }) => ended);
  const scored = ending.map(({ tokens, score }) => ({ tokens, score: score / divisor }));
  search.finished = [...search.finished, ...scored].sort((a, b) => b.score - a.score).slice(0, beams);
}

// Whether a row's best running beam could still come out better than its worst finished one.
function mayImprove({ running, finished }, newTokens, { beams, longest, penalty, early }) {
  if (finished.length < beams) return true;
  const length = early === "never" && penalty > 0 ? longest : newTokens; // decision: HF's guess at the best length
  return running[0].score / length ** penalty > finished.at(-1).score;
}
