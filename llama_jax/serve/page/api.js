"use strict";
// What the page asks of the server, and how its answers come in.

const $ = (id) => document.getElementById(id);

function number(name) {
  const value = $(name).value.trim();
  return value === "" ? undefined : Number(value);
}

function wanted() {
  const seed = number("seed") ?? crypto.getRandomValues(new Uint32Array(1))[0];
  const body = {
    model: $("chosen").value, stream: true, stream_options: { include_usage: true }, seed,
    temperature: number("temperature"), top_p: number("top_p"), max_tokens: number("max_tokens"),
  };
  const said = current.messages;
  if ($("mode").value === "text") {
    body.prompt = said.map((m) => m.content).join("");
    if ($("probabilities").checked) body.logprobs = 5;
    return ["v1/completions", body];
  }
  const system = $("system").value.trim();
  body.messages = said.map(({ role, content }) => ({ role, content }));
  if (system) body.messages.unshift({ role: "system", content: system });
  if ($("probabilities").checked) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  return ["v1/chat/completions", body];
}

// The answer to what was asked, and what was asked in the end: where a conversation does not fit the
// context, the model does not see its oldest turns, as with `llama-jax chat`.
async function askToAnswer(path, body, signal) {
  let response = await ask(path, body, signal);
  if (response.ok) return { response, body, dropped: 0 };
  let { error } = await response.json();
  if (error.code === "context_length_exceeded" && body.messages) {
    const shorter = await fitted(body, error.n_ctx, signal);
    if (shorter) {
      response = await ask(path, shorter.body, signal);
      if (response.ok) return { response, ...shorter };
      ({ error } = await response.json());
    }
  }
  if (error.code !== "context_length_exceeded") throw new Error(error.message);
  throw new Error(
    `${error.n_prompt_tokens} tokens and an answer of up to ${body.max_tokens ?? 1} are more than `
    + `the context of ${error.n_ctx}: shorten `
    + (body.messages ? "the message or the system text." : "the text or the answer."),
  );
}

// What to ask so that the answer has room, half of the context unless it may take less; null if
// the last message alone does not leave any.
async function fitted(body, context, signal) {
  const system = body.messages.filter((message) => message.role === "system");
  const said = body.messages.slice(system.length);
  const without = (turns) => [...system, ...said.slice(2 * turns)];
  const tokens = async (turns) => {
    const response = await ask("tokenize", { messages: without(turns) }, signal);
    const found = await response.json();
    if (!response.ok) throw new Error(found.error.message);
    return found.count;
  };
  const room = Math.min(body.max_tokens ?? context, Math.floor(context / 2));
  let [dropped, most] = [0, Math.floor((said.length - 1) / 2)];
  while (dropped < most) {
    const middle = Math.floor((dropped + most) / 2);
    if (await tokens(middle) + room <= context) most = middle;
    else dropped = middle + 1;
  }
  const rest = context - await tokens(dropped);
  if (rest < 1) return null;
  const max_tokens = Math.min(body.max_tokens ?? rest, rest);
  return { dropped, body: { ...body, messages: without(dropped), max_tokens } };
}

let asking = null; // the key is asked for once, however many requests need it

async function ask(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem("key");
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    if (body) headers["Content-Type"] = "application/json";
    const response = await fetch(path, {
      method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body),
    });
    if (response.status !== 401) return response;
    asking ??= askKey().finally(() => { asking = null; });
    if (!(await asking)) throw new Error("The server needs a key.");
  }
}

function askKey() {
  const dialog = $("keys");
  $("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => {
    sessionStorage.setItem("key", $("key").value);
    done(dialog.returnValue === "ok" && $("key").value !== "");
  }, { once: true }));
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection ended before the answer did.");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// The tokens of an event: what each adds to the text, its log-probability, those of others, and
// how it is called, for parts of a character add nothing until its last byte has come.
function collect(message, logprobs, decoder) {
  if (!logprobs) return;
  message.tokens ??= [];
  const add = (bytes, logprob, others, name) => {
    const text = decoder.decode(Uint8Array.from(bytes), { stream: true });
    message.tokens.push([text, logprob, others, name]);
  };
  if (logprobs.content) {
    for (const t of logprobs.content) {
      add(t.bytes, t.logprob, t.top_logprobs.map((o) => [o.token, o.logprob]), t.token);
    }
    return;
  }
  logprobs.tokens.forEach((name, n) => {
    const others = Object.entries(logprobs.top_logprobs[n]).sort((a, b) => b[1] - a[1]);
    add(spelled(name), logprobs.token_logprobs[n], others, name);
  });
}

// The bytes of a token of /v1/completions, which writes parts of characters as bytes:\xe2.
function spelled(name) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(name)) return new TextEncoder().encode(name);
  return name.slice("bytes:".length).match(/[0-9a-f]{2}/g).map((two) => parseInt(two, 16));
}
