const RARE = new Set(["kind", "invalid_changed", "unreadable"]); /* counts that are shown only where there is one */

function drawDiff(diff, number) {
  const home = section(`diff${number}`, `${diff.a} → ${diff.b}`, "changes");
  home.append(el("p", { class: "verdict " + (diff.only_bit11 ? "good" : "bad") }, diff.verdict),
    ...lines(diff.unseen, "bad"), ...lines(diff.notes, "facts"));
  if (diff.changes.length) {
    home.append(el("p", {}, "unexpected changes, each opens its table:"), ...picked(diff.words, "filter: lost, an address…", diff.changes_total,
      (i) => () => mapOf(number).reveal(BigInt(diff.changes[i].va_start), diff.changes[i].level)));
  }
  const columns = Object.keys(diff.levels[0] || {})
    .filter((key) => !["name", "level"].includes(key) && (!RARE.has(key) || diff.levels.some((l) => l[key])));
  home.append(el("div", { class: "scroll" }, table(["level", ...columns.map((c) => c.replaceAll("_", " "))],
    diff.levels.map((l) => [`${l.name} ${l.level}`, ...columns.map((c) => String(l[c]))]), columns.map((_, i) => i + 1))));
}

/* Colour by what EL1 and EL0 (three letters each) may do; the first that fits. */
const GROUPS = [["writable and executable", "#d62728"], ["executable", "#2f6db3"], ["writable", "#f0c27b"],
  ["read only", "#7ccf8a"], ["no access", "#999"]];
const groupOf = (may) => [may.slice(0, 3), may.slice(3)].includes("rwx") ? 0 : may.includes("x") ? 1 : may.includes("w") ? 2 : may.includes("r") ? 3 : 4;
const paint = (part, group, ng) => {
  part.style.background = (ng ? "repeating-linear-gradient(45deg, #0000 0 4px, #0007 4px 6px), " : "") + GROUPS[group][1];
  return part;
};

function drawSpace(space, number) {
  const diff = space.diff === null ? null : data.diffs[space.diff];
  const home = section(`space${number}`, diff ? `address space, ${diff.a} → ${diff.b}` : "address space", "regions", diff ? `${diff.a} → ${diff.b}` : space.title);
  const below = space.areas.map((area) => {
    const rest = area.runs_total - area.runs.length;
    return el("tr", { hidden: "" }, el("td", { class: "mono", colspan: 8 }, table(space.heads, area.runs),
      ...(rest > 0 ? lines([`… and ${rest} more`], "facts") : [])));
  });
  const toggles = space.areas.map((area, i) => el("button", { "aria-expanded": "false", onclick: () => toggle(i, below[i].hidden) },
    `${area.runs_total} run${area.runs_total === 1 ? "" : "s"}`));
  const toggle = (i, open) => { below[i].hidden = !open; toggles[i].setAttribute("aria-expanded", open); };
  const seen = new Set();
  const strip = (which, title) => el("div", { class: "strip", role: "group", "aria-label": title }, ...space.areas.map((area, i) => {
    const part = el("button", { title: `${area.name} ${area.va_start}, ${area.size}: ${area[which].map((s) => s.text).join(", ") || "nothing"}`,
      onclick: () => { toggle(i, true); toggles[i].focus(); } });
    part.style.flexGrow = area.width;
    for (const share of area[which]) {
      const fill = paint(el("i"), groupOf(share.may), share.ng);
      fill.style.flexGrow = share.bytes; seen.add(groupOf(share.may));
      part.append(fill);
    }
    part.append(el("span", {}, (area.changes.length && which === "shares" ? "✖ " : "") + area.name));
    return part;
  }));
  const strips = (diff ? [["before", diff.a], ["shares", diff.b]] : [["shares", space.title]]).map(([which, title]) =>
    el("div", { class: "stripe" }, el("span", { class: "facts" }, title), strip(which, title)));
  const told = (shares) => el("code", {}, ...(shares.length ? shares : [{ text: "nothing" }])
    .flatMap((share, i) => [i ? ", " : "", el("span", {}, share.text)]));
  const sure = diff && diff.complete && diff.changes_total === diff.changes.length;
  const changed = (area) => {
    const links = area.changes.slice(0, 5).map((i) => el("button", { title: diff.words[i],
      onclick: () => mapOf(space.diff).reveal(BigInt(diff.changes[i].va_start), diff.changes[i].level) }, diff.changes[i].kinds.join(", ")));
    const more = area.changes.length - links.length;
    return el("span", { class: "links" }, ...links, more > 0 ? `and ${more} more` : links.length ? "" : sure ? "none" : "none of those listed");
  };
  const made = table(["region", "from", "size", ...(diff ? [`mapped in ${diff.a}`, `mapped in ${diff.b}`, "unexpected changes"] : ["mapped"]), "holds", ""],
    space.areas.map((area, i) => [el("strong", {}, area.name), el("code", {}, area.va_start), area.size,
      ...(diff ? [told(area.before), told(area.shares), changed(area)] : [told(area.shares)]), area.holds, toggles[i]]));
  made.querySelectorAll(":scope > tbody > tr").forEach((row, i) => row.after(below[i]));
  const legend = GROUPS.map(([name], i) => el("span", {}, paint(el("i"), i, false), name)).filter((_, i) => seen.has(i));
  home.append(...lines(space.unseen, "bad"), ...strips,
    el("div", { class: "legend" }, ...legend, el("span", {}, paint(el("i"), 4, true), "hatched: nG"),
      el("span", { class: "facts" }, `wider is larger, by the logarithm; regions with nothing mapped are left out; ${space.named_by}`)),
    el("div", { class: "wide" }, made));
  home.append(...ptdump(space, diff));
  if (space.left_out) home.append(...lines([`${space.left_out} more regions are not shown`], "bad"));
}

/* What the kernel itself would print, each range a way to its first entry. */
function ptdump(space, diff) {
  const { era, notes, lines: told } = space.ptdump;
  if (!told.length) return lines(notes.map((note) => `the kernel's own text: ${note}`), "facts");
  const RANGE = /^(0xf[0-9a-f]{15})-.* (PGD|P4D|PUD|PMD|PTE)/;
  const open = (sign, text) => {
    const [, va, name] = text.match(RANGE), later = window.ptinspect.maps[space.map];
    const map = sign === "-" ? window.ptinspect.maps[later.facts.earlier] : later;
    const level = Object.entries(map.facts.names).find(([, known]) => known.toUpperCase() === name);
    map.reveal(BigInt(va), level ? Number(level[0]) : map.facts.regime.start_level); /* the root's is PGD */
  };
  const said = told.map(([sign, text]) => el(RANGE.test(text) ? "button" : "div", { class: { "-": "gone", "+": "come" }[sign] ?? "",
    onclick: RANGE.test(text) ? () => open(sign, text) : null }, `${diff ? sign + " " : ""}${text}`));
  return [el("details", { class: "ptdump" }, el("summary", {}, "the same in the kernel's own words, as in /sys/kernel/debug/kernel_page_tables"),
    ...lines([`in the form of Linux ${era}${diff ? `; - as in ${diff.a}, + as in ${diff.b}` : ""}; a line leads to its first entry`, ...notes], "facts"),
    el("div", { class: "scroll mono" }, ...said))];
}

const mapOf = (number) => window.ptinspect.maps.find((each) => each.facts.diff === number);
