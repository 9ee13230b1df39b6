// What llama.cpp predicts:  NODE_PATH=.../node_modules node scripts/llama_cpp_logits.cjs MODEL TOKENS OUT
//
// TOKENS is a JSON list of lists of token ids, OUT becomes a list of a list for each: the 255 likeliest
// tokens after each token but the last, with log probabilities. `llama_cpp_quality.py` calls it.
const fs = require("node:fs");
const path = require("node:path");
const {pathToFileURL} = require("node:url");

const TOP = 255;

async function main() {
  const [modelPath, tokens, out] = process.argv.slice(2);
  // The package is a module of the kind that NODE_PATH doesn't reach.
  const entry = path.join(process.env.NODE_PATH, "node-llama-cpp", "dist", "index.js");
  const {getLlama} = await import(pathToFileURL(entry));
  const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
  const model = await llama.loadModel({modelPath});
  const pieces = JSON.parse(fs.readFileSync(tokens));
  const longest = Math.max(...pieces.map(piece => piece.length));
  const context = await model.createContext({contextSize: longest, batchSize: longest});
  const sequence = context.getSequence();
  const ask = {generateNext: {probabilities: true, options: {temperature: 0}}};
  const predictions = [];
  for (const piece of pieces) {
    await sequence.clearHistory();
    const answers = await sequence.controlledEvaluate(piece.slice(0, -1).map(token => [token, ask]));
    predictions.push(answers.map(({next}) => {
      const likeliest = [...next.probabilities].sort((a, b) => b[1] - a[1]).slice(0, TOP);
      return likeliest.map(([token, probability]) => [token, Math.log(probability)]);
    }));
    console.error(`${predictions.length} of ${pieces.length} pieces`);
  }
  fs.writeFileSync(out, JSON.stringify(predictions));
}

main().then(() => process.exit(0), error => {
  console.error(error);
  process.exit(1);
});
