// Asks a server what npm's client of OpenAI can ask:  NODE_PATH=.../node_modules node scripts/clients.cjs URL
const assert = require("node:assert");
const {OpenAI, NotFoundError, BadRequestError} = require("openai");

const url = process.argv[2];
const client = new OpenAI({baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0});
const messages = [{role: "user", content: "Name three colours."}];
const ask = {model: "default", messages, temperature: 0, max_tokens: 16};

async function main() {
  const list = await client.models.list();
  assert.deepStrictEqual(list.data.map(model => model.id), ["default"]);

  const whole = await client.chat.completions.create(ask);
  const stream = await client.chat.completions.create({...ask, stream: true, stream_options: {include_usage: true}});
  let said = "", usage = null;
  for await (const chunk of stream) {
    said += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.strictEqual(said, whole.choices[0].message.content);
  assert.strictEqual(usage.completion_tokens, whole.usage.completion_tokens);

  const helped = client.chat.completions.stream(ask);
  assert.strictEqual((await helped.finalChatCompletion()).choices[0].message.content, said);

  const completion = await client.completions.create({model: "default", prompt: "One,", max_tokens: 3, n: 2});
  assert.strictEqual(completion.choices.length, 2);

  const vectors = await client.embeddings.create({model: "default", input: "a boat"});
  assert.strictEqual(vectors.data[0].embedding.length, 576);

  const response = await client.responses.create({model: "default", input: "Hi", max_output_tokens: 8});
  assert.ok(response.output_text.length > 0);

  await assert.rejects(client.chat.completions.create({...ask, model: "other"}), NotFoundError);
  await assert.rejects(client.chat.completions.create({...ask, top_p: 7}), error =>
    error instanceof BadRequestError && error.param === "top_p");

  const gone = new AbortController();
  const long = await client.chat.completions.create({...ask, max_tokens: 4000, stream: true}, {signal: gone.signal});
  for await (const _ of long) { gone.abort(); break; }
  const end = Date.now() + 2000;
  for (;;) {
    const {loads: [load]} = await (await fetch(`${url}/v1/loads`)).json();
    if (load.num_running_reqs + load.num_waiting_reqs === 0) break;
    assert.ok(Date.now() < end, "the request still runs");
    await new Promise(done => setTimeout(done, 20));
  }
  console.log("npm's openai: ok");
}

main().catch(error => { console.error(error); process.exit(1); });
