const OUTCOMES = { pass: "#17a05d", retried: "#b8901a", fail: "#d62728", crash: "#8e44ad", hang: "#c26a1c", error: "#d0569f",
  bug: "#808080", missing: dark ? "#4a4a52" : "#c9c9cf" }; /* what is not known here: the last but one */
const outcomeColour = (name) => OUTCOMES[name] ?? OUTCOMES.bug;

function drawCampaign(campaign, number) {
  const home = section(`campaign${number}`, campaign.title);
  home.append(el("p", { class: "verdict " + (campaign.good ? "good" : "bad") }, campaign.verdict), ...lines(campaign.notes, "facts"));
  const { ways, cells } = campaign;
  if (ways.length) home.append(el("h3", {}, `what did not pass, in ${ways.length} way${ways.length === 1 ? "" : "s"}`),
    ...picked(ways.map((way) => way.words), "filter: hang, a cell, a function…", campaign.ways_total,
      (i) => ways[i].diff === null ? null : () => document.getElementById(`diff${ways[i].diff}`).scrollIntoView()));
  const longest = Math.max(1e-9, ...cells.map((c) => c.seconds.max ?? 0));
  const seen = Object.keys(OUTCOMES).concat("?").filter((name) => cells.some((c) => c.outcomes[name]));
  const bar = (cell) => {
    const order = [...Object.keys(OUTCOMES), ...Object.keys(cell.outcomes).filter((name) => !(name in OUTCOMES))].filter((name) => cell.outcomes[name]);
    return [el("div", { class: "bar" }, ...order.map((name) => {
      const part = el("i", { title: `${cell.outcomes[name]} × ${name}` });
      part.style.flexGrow = cell.outcomes[name]; part.style.background = outcomeColour(name);
      return part;
    })), order.map((name) => `${cell.outcomes[name]} ${name}`).join(", ")];
  };
  const measured = (from, to, text, mark) => {
    const inner = el("i"), box = el("div", { class: "measure" }, el("div", {}, inner), text);
    inner.style.marginLeft = `${100 * from}%`; inner.style.width = `max(2px, ${100 * (to - from)}%)`;
    if (mark !== undefined) { const tick = el("b"); tick.style.left = `${100 * mark}%`; box.firstChild.append(tick); }
    return box;
  };
  const stack = (c) => c.deepest === null ? "-"
    : c.least_free === null ? `${c.deepest} used` : measured(0, c.deepest / (c.deepest + c.least_free || 1), `${c.deepest} used, ${c.least_free} free`);
  const time = ({ seconds: s }) => s.min === null ? "-"
    : measured(s.min / longest, s.max / longest, [s.min, s.median, s.max].map((v) => v.toFixed(1)).join(" / "), s.median / longest);
  const has = (key) => cells.some((c) => c[key] !== null);
  const columns = [["cell", (c) => el("code", {}, c.name)], ["runs", (c) => String(c.runs)], ["outcomes", (c) => bar(c)[0]], ["", (c) => bar(c)[1]],
    ...(has("deepest") ? [["deepest stack: most bytes used, least free", stack]] : []),
    ...(has("lost") ? [["entries lost", (c) => c.lost ? el("span", { class: "bad" }, String(c.lost)) : String(c.lost ?? "-")]] : []),
    ["seconds: shortest / median / longest", time]];
  home.append(el("h3", {}, "cells"), el("div", { class: "legend" }, ...seen.map((name) => {
    const patch = el("i"); patch.style.background = outcomeColour(name);
    return el("span", {}, patch, name);
  })), el("div", { class: "scroll wide cells" }, table(columns.map(([head]) => head), cells.map((c) => columns.map(([, show]) => show(c))), [1])));
  home.append(...campaign.tables.map(titled));
}
