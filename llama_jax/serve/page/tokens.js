"use strict";
// How probable each token of an answer was: marks under the text, and what else was likely on
// hover, tap, or with the arrow keys.

const scores = new WeakMap(); // the node of a token: its text, log-probability, and the others'

// The text of a message, or the rest of it behind what the node has already.
function fill(node, message) {
  if (!message.tokens) {
    node.textContent = message.content;
    return;
  }
  const rest = message.tokens.slice(node.childElementCount).map(token);
  if (!node.childElementCount && rest.length) {
    Object.assign(node, { tabIndex: 0, ariaLabel: "Answer. Arrow keys read how probable it was." });
    node.setAttribute("role", "group");
    // Answers of a conversation are trimmed, and their first token often begins with a space.
    if (!message.content.startsWith(" ")) rest[0].firstChild.remove();
  }
  node.append(...rest);
}

function token(value) {
  const p = Math.exp(value[1]);
  const kind = p > 0.5 ? "likely" : p > 0.1 ? "possible" : "unlikely";
  const node = element("span", undefined, { class: `token ${kind}` });
  const [, space, word] = value[0].match(/^( *)(.*)$/s);
  node.append(space, element("b", word)); // the mark would hang over the end of a line
  scores.set(node, value);
  return node;
}

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;
const quoted = (text) => JSON.stringify(text);

function showTip(node) {
  const [, logprob, others, name] = scores.get(node);
  hideTip();
  node.classList.add("shown");
  $("tip").replaceChildren(element("strong", `${quoted(name)} ${percent(logprob)}`));
  for (const [another, other] of others) {
    const row = element("div", undefined, { class: "share" });
    const bar = element("i");
    bar.style.width = `${100 * Math.exp(other)}%`;
    row.append(bar, element("span", quoted(another)), element("span", percent(other)));
    $("tip").append(row);
  }
  $("tip").hidden = false;
  const at = node.lastElementChild.getBoundingClientRect();
  const { width, height } = $("tip").getBoundingClientRect();
  const below = at.bottom + 4 + height < innerHeight;
  $("tip").style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
  $("tip").style.top = `${below ? at.bottom + 4 : Math.max(4, at.top - height - 4)}px`;
}

function hideTip() {
  for (const node of $("log").querySelectorAll(".shown")) node.classList.remove("shown");
  $("tip").hidden = true;
}

function moveTip(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const tokens = event.target.children;
  if (!step || !scores.has(tokens[0])) return;
  event.preventDefault();
  const now = [...tokens].findIndex((node) => node.classList.contains("shown"));
  const next = tokens[Math.min(Math.max(now + step, 0), tokens.length - 1)];
  next.scrollIntoView({ block: "nearest" });
  showTip(next);
  $("spoken").textContent = [...$("tip").children].map((row) => row.textContent).join(", ");
}

$("log").addEventListener("pointerover", (event) => {
  const node = event.target.closest(".token");
  if (node) showTip(node);
  else hideTip();
});
$("log").addEventListener("pointerout", (event) => {
  if (event.pointerType !== "touch") hideTip(); // what was tapped stays until the next tap
});
$("log").addEventListener("keydown", moveTip);
$("log").addEventListener("focusout", hideTip);
