"use strict";
// The page. Whatever comes from people, files or the model becomes text of nodes and never markup.

const SETTINGS = [
  "mode", "chosen", "system", "temperature", "top_p", "max_tokens", "seed", "probabilities",
  "second_model", "second",
];
let context = 0; // tokens that a conversation can have
let running = null; // AbortController of the answer that is being drawn

// ---- Conversations

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
  for (const name of ["mode", "chosen", "second_model"]) {
    if ($(name).selectedIndex < 0) $(name).selectedIndex = 0; // of a server with other models
  }
  show();
}

function keepSettings() {
  for (const name of SETTINGS) {
    current.settings[name] = name === "probabilities" ? $(name).checked : $(name).value;
  }
  save();
}

function remove(conversation) {
  conversations = conversations.filter((other) => other !== conversation);
  if (conversation === current) open_(conversations[0] || fresh());
  else show();
  save();
  $("new").focus();
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
  hideTip();
  showList();
  $("model").textContent = $("chosen").value;
  $("log").replaceChildren(...current.messages.map(article));
  if (!current.messages.length) {
    $("log").append(element("p", "Nothing has been said yet. What is said stays in this browser.", { class: "quiet" }));
  }
  end();
}

function showList() {
  $("list").replaceChildren(...conversations.map((conversation) => {
    const item = element("li");
    const choose = button(title(conversation), `Open: ${title(conversation)}`, () => {
      open_(conversation);
      menu(false);
      $("box").focus();
    });
    choose.dir = "auto";
    if (conversation === current) choose.setAttribute("aria-current", "true");
    item.append(choose, button("✕", `Delete: ${title(conversation)}`, () => remove(conversation)));
    return item;
  }));
}

function article(message, place) {
  const node = element("article", undefined, { class: message.role });
  const name = message.role === "user" ? "You" : message.model || $("chosen").value || "Model";
  node.append(element("h2", message.other && message.other.model !== message.model ? "Two models" : name));
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
  if (whole.other) {
    const named = whole.other.model === whole.model ? "Temperature" : `${message.model}, temperature`;
    node.append(element("h3", `${named} ${message.temperature ?? "of the server"}`));
  }
  const text = element("p", undefined, { dir: "auto" });
  fill(text, message);
  const footer = element("footer");
  node.append(text, footer);
  const last = place === current.messages.length - 1;
  if (message.role === "user") {
    footer.append(button("Edit", "Edit this message", () => edit(place)));
    return node;
  }
  footer.append(button("Copy", "Copy this answer", () => copy(message.content)));
  if (whole.other && !running) {
    footer.append(button("Keep", "Keep this answer and drop the other", () => keep(place, message)));
  }
  if (last && message === whole) {
    const what = whole.other ? "Draw both answers again" : "Draw another answer";
    footer.append(button("Retry", what, () => retry(place)));
  }
  if (message.note) footer.append(element("span", message.note, { class: "quiet" }));
  if (message.failed) {
    // What failed earlier would be read aloud again at every change of the page.
    const role = last ? { role: "alert" } : {};
    footer.append(element("span", message.failed, { class: "failed", ...role }));
  }
  return node;
}

function end() {
  $("log").scrollTop = $("log").scrollHeight;
}

function menu(wanted) {
  $("side").classList.toggle("open", wanted);
  $("menu").setAttribute("aria-expanded", String(wanted));
  $("menu").textContent = wanted ? "Close" : "Menu";
}

// ---- Answers

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    say("The browser does not let this page copy: select the text instead.");
  }
}

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
  $("log").focus(); // its button is gone
}

function keep(place, message) {
  const { other, temperature, ...kept } = message;
  current.messages[place] = { ...kept, role: "assistant" };
  save();
  show();
  $("log").focus();
}

function stop() {
  if (running) running.abort();
}

async function answer() {
  const mine = current;
  const [path, body] = wanted();
  const message = { role: "assistant", content: "", model: body.model };
  const versions = [message];
  const second = number("second");
  const model = $("second_model").value || body.model;
  if (second !== undefined || model !== body.model) {
    message.temperature = body.temperature;
    message.other = { content: "", model, temperature: second ?? body.temperature };
    versions.push(message.other);
  }
  mine.messages.push(message);
  save();
  const controller = running = new AbortController();
  show();
  const nodes = $("log").lastElementChild.querySelectorAll("p");
  busy(true);
  await Promise.all(versions.map((one, n) => draw(
    one, nodes[n], path,
    { ...body, model: one.model, temperature: one.temperature ?? body.temperature },
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
    const { response, dropped } = await askToAnswer(path, body, signal);
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
    const cut = decoder.decode(); // a character that lacks bytes
    if (cut) message.tokens.at(-1)[0] += cut;
    const seconds = (performance.now() - began) / 1000;
    message.note = `seed ${body.seed}`;
    if (usage) {
      message.note += `, ${usage.completion_tokens} tokens, `
        + `${(usage.completion_tokens / seconds).toFixed(1)} a second, `
        + `${usage.total_tokens} of ${context} in the context`;
    }
    if (dropped) {
      message.note += dropped === 1
        ? ", the model no longer sees the oldest turn"
        : `, the model no longer sees the ${dropped} oldest turns`;
    }
    if (reason === "length") message.note += ", cut at the limit";
    if (!message.content) message.failed = "The model said nothing.";
  } catch (error) {
    if (error.name === "AbortError") {
      if (message.content) message.note = `seed ${body.seed}, stopped`;
      else message.failed = "Stopped before anything was said.";
    } else if (!(error instanceof TypeError)) {
      message.failed = String(error.message || error);
    } else {
      message.failed = message.content
        ? "The connection was lost before the answer ended." : "The server does not answer.";
    }
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
  const [gone, come] = is ? ["send", "stop"] : ["stop", "send"];
  const held = document.activeElement === $(gone);
  $(gone).hidden = true;
  $(come).hidden = false;
  if (held) $(come).focus();
  say(is ? "Answering" : "");
}

function send() {
  const text = $("box").value;
  if (running || !text.trim()) return;
  const last = current.messages.at(-1);
  // What brought no answer at all would stand between the others as a question without one.
  const answered = last && (last.content || (last.other && last.other.content));
  if (last && last.failed && !answered) current.messages.splice(-2);
  current.messages.push({ role: "user", content: $("mode").value === "text" ? text : text.trim() });
  $("box").value = "";
  keepSettings();
  answer();
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
  hideTip();
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
$("chosen").addEventListener("change", () => { $("model").textContent = $("chosen").value; });
window.addEventListener("pagehide", save); // with as much of an answer as has come
window.addEventListener("storage", (event) => {
  if (event.key === STORE) takeOver();
});

function offer(cards) {
  const option = (name) => element("option", name, { value: name });
  $("chosen").replaceChildren(...cards.map((card) => option(card.id)));
  $("second_model").append(...cards.map((card) => option(card.id)));
  for (const name of ["chosen", "second_model"]) $(name).parentElement.hidden = cards.length < 2;
  // An answer must leave room for what it answers.
  context = $("max_tokens").max = cards[0].max_model_len;
  if (number("max_tokens") > context / 2) $("max_tokens").value = Math.floor(context / 2);
}

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
  offer((await (await ask("v1/models")).json()).data);
  say("");
  open_(current);
}

begin().catch((error) => say(String(error.message || error)));
