"use strict";
// Conversations live in this browser alone: what is kept of them, and files of them.

const STORE = "llama-jax-conversations";
const MAX_IMPORT = 20e6;
let conversations = [];
let current = null;

function fresh() {
  return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), settings: {}, messages: [] };
}

// ---- What a file or an older page may hold. Anything else would break the page at every start.

const isText = (value) => typeof value === "string";
const isList = (value, one) => Array.isArray(value) && value.every(one);
const isPair = (value) => Array.isArray(value) && isText(value[0]) && Number.isFinite(value[1]);
const isSet = (value) => isText(value) || typeof value === "boolean";
const absent = (value, is) => value === undefined || is(value);

function isToken(value) {
  return isPair(value) && isList(value[2], isPair) && isText(value[3]);
}

function isSaid(value) {
  return Boolean(value) && isText(value.content)
    && [value.note, value.failed, value.model].every((one) => absent(one, isText))
    && absent(value.temperature, Number.isFinite)
    && absent(value.tokens, (tokens) => isList(tokens, isToken));
}

function isMessage(value) {
  return isSaid(value) && ["user", "assistant"].includes(value.role) && absent(value.other, isSaid);
}

function isConversation(value) {
  return Boolean(value) && isText(value.id) && isList(value.messages, isMessage)
    && Boolean(value.settings) && isList(Object.values(value.settings), isSet);
}

// ---- Kept

function stored() {
  try {
    return JSON.parse(localStorage.getItem(STORE) || "[]").filter(isConversation);
  } catch {
    return [];
  }
}

function load() {
  conversations = stored();
  for (const answer of conversations.flatMap((one) => one.messages)) {
    if (answer.role === "assistant" && !answer.content && !answer.failed) {
      answer.failed = "The page was closed before anything was said.";
    }
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

// Another tab saved: without its conversations, the next save here would delete them.
function takeOver() {
  const open = current.id;
  conversations = stored();
  const found = conversations.findIndex((one) => one.id === open);
  if (found < 0) return showList();
  if (running) conversations[found] = current;
  else current = conversations[found];
  show();
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
    const found = await file.text().then(JSON.parse).catch(() => null);
    if (!isList(found, isConversation)) throw new Error("the file holds no conversations");
    const known = new Set(found.map((c) => c.id));
    conversations = [...found, ...conversations.filter((c) => !known.has(c.id))];
    open_(conversations[0] || fresh());
    save();
    say(found.length === 1 ? "1 conversation imported." : `${found.length} conversations imported.`);
  } catch (error) {
    say(`Not imported: ${error.message}.`);
  }
}
