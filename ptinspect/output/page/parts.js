/* What all parts of the page draw with. Nothing is fetched; every string of the data is set as text. */
const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main"), nav = document.getElementById("nav");
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
const COLOURS = [dark ? "#2a2a30" : "#e9e9ec", "#9db7d5", "#2f6db3", "#f0c27b", "#e0883a", "#b48ead",
  dark ? "#5d5d66" : "#c9c9cf", dark ? "#999" : "#444", "#17a05d", "#7ccf8a", "#8c6d1f", "#c9a227", "#d62728",
  "#8e44ad", "#e377c2", "#ff5fa2"];
const FIRST_CHANGE = 8, FIRST_LOUD = 10; /* the states from there on: changed; more than what the rewrite does */
const BIT11_ONLY = new Set([8, 9, 10, 11]);
const MASK = (1n << 64n) - 1n;

const el = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
};
const hex = (value, digits = 0) => "0x" + value.toString(16).padStart(digits, "0");
new ResizeObserver(([{ target }]) => document.documentElement.style.setProperty("--head", `${target.offsetHeight}px`))
  .observe(document.querySelector("header"));
const groups = {}; /* of links at the head of the page, by what they lead to */
const section = (id, title, kind = "", name = title) => {
  const made = el("section", { id }, el("h2", {}, title));
  main.append(made);
  if (!(kind in groups)) nav.append(groups[kind] = el("span", {}, kind && kind + ": "));
  groups[kind].append(el("a", { href: "#" + id, title }, name));
  return made;
};
const table = (heads, rows, numeric = []) => {
  const cell = (tag, text, i) => el(tag, numeric.includes(i) ? { class: "n" } : {}, text);
  return el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((t, i) => cell("th", t, i)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((t, i) => cell("td", t, i))))));
};

const lines = (texts, kind) => texts.map((text) => el("p", { class: kind }, text));
const titled = (part) => el("div", { class: "scroll" }, ...(part.title ? [el("h3", {}, part.title.replace(/:$/, ""))] : []),
  table(part.heads, part.rows, part.numeric));
const picked = (words, hint, total, opens) => { /* texts to choose from by words in them; what one opens, if anything */
  const body = el("ol", { class: "scroll changes" }), said = el("span", { class: "facts" });
  const item = (i) => { const open = opens(i); return open ? el("button", { onclick: open }, words[i]) : el("div", {}, words[i]); };
  const draw = (wanted) => {
    const each = wanted.toLowerCase().split(/\s+/).filter(Boolean), kept = [];
    words.forEach((text, i) => { if (each.every((word) => text.toLowerCase().includes(word))) kept.push(i); });
    said.textContent = ` ${kept.length} of ${words.length}` + (total > words.length ? ` (of ${total})` : "");
    body.replaceChildren(...kept.map((i) => el("li", { value: i + 1 }, item(i))));
  };
  draw("");
  return [el("p", {}, el("input", { type: "search", "aria-label": "filter", placeholder: hint, oninput: (event) => draw(event.target.value) }), said), body];
};
