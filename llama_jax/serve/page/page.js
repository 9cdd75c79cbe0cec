"use strict";
// Conversations live in this browser alone. Whatever comes from people, files or the model becomes
// text of nodes and never markup.

const $ = (id) => document.getElementById(id);
const STORE = "llama-jax-conversations";
const SETTINGS = [
  "mode", "system", "temperature", "second", "top_p", "max_tokens", "seed", "probabilities",
];
const MAX_IMPORT = 20e6;
let model = "";
let context = 0; // tokens that a conversation can have
let conversations = [];
let current = null;
let running = null; // AbortController of the answer that is being drawn

// ---- Conversations

function fresh() {
  return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), settings: {}, messages: [] };
}

function sound(conversation) {
  const text = (value) => typeof value === "string";
  return conversation && text(conversation.id) && Array.isArray(conversation.messages)
    && typeof conversation.settings === "object" && conversation.settings !== null
    && conversation.messages.every((m) => m && ["user", "assistant"].includes(m.role)
      && text(m.content) && (m.other === undefined || (m.other && text(m.other.content))));
}

function load() {
  try {
    conversations = JSON.parse(localStorage.getItem(STORE) || "[]").filter(sound);
  } catch {
    conversations = [];
  }
  current = conversations[0] || fresh();
}

function save() {
  if (!conversations.includes(current) && current.messages.length) conversations.unshift(current);
  try {
    localStorage.setItem(STORE, JSON.stringify(conversations));
  } catch {
    say("This browser has no more room: export and delete conversations.");
  }
}

function title(conversation) {
  const first = conversation.messages[0];
  return first ? first.content.slice(0, 60) : "Nothing said yet";
}

function open_(conversation) {
  stop();
  current = conversation;
  for (const name of SETTINGS) {
    if (!(name in current.settings)) continue;
    if (name === "probabilities") $(name).checked = Boolean(current.settings[name]);
    else $(name).value = current.settings[name];
  }
  show();
}

function keepSettings() {
  for (const name of SETTINGS) {
    current.settings[name] = name === "probabilities" ? $(name).checked : $(name).value;
  }
  save();
}

// ---- What is seen

function element(kind, text, attributes = {}) {
  const node = document.createElement(kind);
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function button(text, label, act) {
  const node = element("button", text, { type: "button", "aria-label": label });
  node.addEventListener("click", act);
  return node;
}

function say(text) {
  $("state").textContent = text;
}

function show() {
  const list = $("list");
  list.replaceChildren();
  for (const conversation of conversations) {
    const item = element("li");
    const choose = button(title(conversation), `Open: ${title(conversation)}`, () => {
      open_(conversation);
      menu(false);
      $("box").focus();
    });
    choose.dir = "auto";
    if (conversation === current) choose.setAttribute("aria-current", "true");
    item.append(choose, button("✕", `Delete: ${title(conversation)}`, () => {
      conversations = conversations.filter((other) => other !== conversation);
      save();
      if (conversation === current) open_(conversations[0] || fresh());
      else show();
    }));
    list.append(item);
  }
  $("log").replaceChildren(...current.messages.map(article));
  end();
}

function article(message, place) {
  const node = element("article", undefined, { class: message.role });
  node.append(element("h2", message.role === "user" ? "You" : model || "Model"));
  if (message.other) {
    const both = element("div", undefined, { class: "both" });
    both.append(...[message, message.other].map((one) => version(one, message, place)));
    node.append(both);
  } else {
    node.append(version(message, message, place));
  }
  return node;
}

function version(message, whole, place) {
  const node = element("section");
  if (whole.other) node.append(element("h3", `Temperature ${message.temperature}`));
  const text = element("p", undefined, { dir: "auto" });
  fill(text, message);
  const footer = element("footer");
  node.append(text, footer);
  const last = place === current.messages.length - 1;
  if (message.role === "user") {
    footer.append(button("Edit", "Edit this message", () => edit(place)));
  } else {
    footer.append(button("Copy", "Copy this answer", () => {
      navigator.clipboard.writeText(message.content).then(() => say("Copied."), () => say("Not copied."));
    }));
    if (whole.other && !running) {
      footer.append(button("Keep", "Keep this answer and drop the other", () => keep(place, message)));
    }
    if (last && message === whole) {
      footer.append(button("Retry", "Draw another answer", () => retry(place)));
    }
    if (message.note) footer.append(element("span", message.note));
    if (message.failed) {
      footer.append(element("span", message.failed, { class: "failed", role: "alert" }));
    }
  }
  return node;
}

function fill(node, message) {
  if (!message.tokens) {
    node.textContent = message.content;
    return;
  }
  node.replaceChildren(...message.tokens.map(token));
}

function token([text, logprob, others]) {
  const p = Math.exp(logprob);
  const kind = p > 0.5 ? "likely" : p > 0.1 ? "possible" : "unlikely";
  const percent = (x) => `${(100 * Math.exp(x)).toFixed(1)} %`;
  const tops = others.map(([t, l]) => `${JSON.stringify(t)} ${percent(l)}`).join("\n");
  return element("span", text, { class: `token ${kind}`, title: `${percent(logprob)}\n${tops}` });
}

function end() {
  $("log").scrollTop = $("log").scrollHeight;
}

function menu(wanted) {
  $("side").classList.toggle("open", wanted);
  $("menu").setAttribute("aria-expanded", String(wanted));
}

// ---- Answers

function edit(place) {
  stop();
  $("box").value = current.messages[place].content;
  current.messages = current.messages.slice(0, place);
  save();
  show();
  $("box").focus();
}

function retry(place) {
  stop();
  current.messages = current.messages.slice(0, place);
  answer();
}

function keep(place, message) {
  const { other, temperature, ...kept } = message;
  current.messages[place] = kept;
  save();
  show();
}

function stop() {
  if (running) running.abort();
}

async function answer() {
  const mine = current;
  const [path, body] = wanted();
  const message = { role: "assistant", content: "" };
  const versions = [message];
  const second = number("second");
  if (second !== undefined) {
    message.temperature = body.temperature;
    message.other = { role: "assistant", content: "", temperature: second };
    versions.push(message.other);
  }
  mine.messages.push(message);
  save();
  show();
  const nodes = $("log").lastElementChild.querySelectorAll("p");
  const controller = running = new AbortController();
  busy(true);
  await Promise.all(versions.map((version, n) => draw(
    version, nodes[n], path, { ...body, temperature: version.temperature ?? body.temperature },
    controller.signal, () => mine === current, n === 0,
  )));
  if (running === controller) {
    running = null;
    busy(false);
  }
  save();
  if (mine === current) show();
}

// Stream one answer into a message and its node, as long as that is seen.
async function draw(message, node, path, body, signal, seen, spoken) {
  const began = performance.now();
  let usage = null;
  let reason = "";
  let unsaid = "";
  const decoder = new TextDecoder(); // of the bytes of tokens, which may be parts of a character
  try {
    const response = await ask(path, body, signal);
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      usage = event.usage || usage;
      for (const choice of event.choices) {
        const text = choice.delta ? choice.delta.content || "" : choice.text;
        reason = choice.finish_reason || reason;
        message.content += text;
        collect(message, choice.logprobs, decoder);
        if (spoken) unsaid = speak(unsaid + text);
      }
      if (seen()) {
        const low = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;
        fill(node, message);
        if (low) end();
      }
    }
    const seconds = (performance.now() - began) / 1000;
    message.note = `seed ${body.seed}`;
    if (usage) {
      message.note += `, ${usage.completion_tokens} tokens, `
        + `${(usage.completion_tokens / seconds).toFixed(1)} a second, `
        + `${usage.total_tokens} of ${context} in the context`;
    }
    if (reason === "length") message.note += ", cut at the limit";
    if (!message.content) message.failed = "The model said nothing.";
  } catch (error) {
    if (error instanceof TypeError) message.failed = "The connection was lost.";
    else if (error.name !== "AbortError") message.failed = String(error.message || error);
    else if (!message.content) message.failed = "Stopped before anything was said.";
    else message.note = `seed ${body.seed}, stopped`;
  }
  if (unsaid.trim()) $("spoken").textContent = unsaid;
}

function speak(text) {
  // Whole sentences: a screen reader would stutter over tokens.
  const cut = Math.max(...[". ", "! ", "? ", "\n"].map((mark) => text.lastIndexOf(mark)));
  if (cut < 0) return text;
  $("spoken").textContent = text.slice(0, cut + 1);
  return text.slice(cut + 1);
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  say(is ? "Answering" : "");
}

function send() {
  const text = $("box").value;
  if (running || !text.trim()) return;
  const failed = current.messages.at(-1);
  if (failed && failed.failed) current.messages.splice(-2);
  current.messages.push({ role: "user", content: $("mode").value === "text" ? text : text.trim() });
  $("box").value = "";
  keepSettings();
  answer();
}

// ---- Files

function download() {
  const blob = new Blob([JSON.stringify(conversations, null, 1)], { type: "application/json" });
  const link = element("a", undefined, { download: "conversations.json" });
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function upload(file) {
  try {
    if (file.size > MAX_IMPORT) throw new Error("the file is too large");
    const found = JSON.parse(await file.text());
    if (!Array.isArray(found) || !found.every(sound)) throw new Error("no conversations");
    const known = new Set(found.map((c) => c.id));
    conversations = [...found, ...conversations.filter((c) => !known.has(c.id))];
    save();
    open_(conversations[0] || fresh());
    say(`${found.length} conversations imported.`);
  } catch (error) {
    say(`Not imported: ${error.message}`);
  }
}

// ---- Begin

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("box").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  stop();
  menu(false);
});
$("stop").addEventListener("click", () => {
  stop();
  $("box").focus();
});
$("new").addEventListener("click", () => {
  const settings = { ...current.settings };
  open_({ ...fresh(), settings });
  menu(false);
  $("box").focus();
});
$("menu").addEventListener("click", () => menu(!$("side").classList.contains("open")));
$("export").addEventListener("click", download);
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  if ($("file").files[0]) upload($("file").files[0]);
  $("file").value = "";
});
for (const name of SETTINGS) $(name).addEventListener("change", keepSettings);

async function begin() {
  load();
  open_(current);
  for (;;) {
    try {
      if ((await fetch("ready")).ok) break;
      say("The model is loading.");
    } catch {
      say("The server does not answer.");
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
  const response = await ask("v1/models");
  const [card] = (await response.json()).data;
  model = card.id;
  // An answer must leave room for what it answers.
  const most = $("max_tokens");
  context = most.max = card.max_model_len;
  if (number("max_tokens") > context / 2) most.value = Math.floor(context / 2);
  $("model").textContent = model;
  say("");
  show();
}

begin().catch((error) => say(String(error.message || error)));
