async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
const last = {}; /* the columns of the map before: another can be what differs from them */
async function unpackColumn(name, column) {
  const bytes = await unpack(column.packed);
  if (column.differs) for (let i = 0; i < bytes.length; i++) bytes[i] ^= last[name][i];
  return last[name] = bytes;
}
function numbersOf(planes, Kind) {
  const size = Kind.BYTES_PER_ELEMENT, count = planes.length / size;
  const bytes = new Uint8Array(planes.length);
  for (let p = 0; p < size; p++) for (let i = 0; i < count; i++) bytes[i * size + p] = planes[p * count + i];
  const numbers = new Kind(bytes.buffer);
  for (let i = 1; i < count; i++) numbers[i] += numbers[i - 1];
  return numbers;
}

class TableMap {
  constructor(facts, parts) {
    Object.assign(this, { facts }, parts);
    this.patterns = facts.patterns.map((p) => ({ kind: p.kind, fields: (p.fields ?? []).map((n) => data.fields[n]),
      distance: p.distance === undefined ? null : BigInt(p.distance) }));
    this.hiddenBelow = this.placeHidden();
    this.below = this.findChanges();
  }
  static async of(facts) {
    const names = { pa: BigUint64Array, va: BigUint64Array, raw: BigUint64Array, decoded: Uint16Array, links: Int32Array, hidden: BigUint64Array };
    const parts = { states: await unpackColumn("states", facts.states) };
    for (const [name, Kind] of Object.entries(names)) parts[name] = numbersOf(await unpackColumn(name, facts[name]), Kind);
    return new TableMap(facts, parts);
  }
  entry(row, index) {
    const { facts } = this, level = facts.level[row], at = row * facts.entries + index;
    const word = this.raw[at], pattern = this.patterns[this.decoded[at]], size = 1n << BigInt(facts.regime.shifts[level]);
    const va = (this.va[row] + BigInt(index) * size) & MASK;
    return { row, index, level, word, va, end: (va + size - 1n) & MASK, kind: pattern.kind, pattern,
      target: pattern.distance === null ? null : (word + pattern.distance) & MASK,
      pa: this.pa[row] + BigInt(index * 8), state: this.states[at], child: this.links[at] < 0 ? undefined : this.links[at] };
  }
  placeHidden() {
    /* By entry: the worst change in tables below it that a page has no room for. */
    const { facts, links } = this, found = new Map();
    for (const word of this.hidden) {
      const level = Number(word >> 2n & 7n) - 1, worst = Number(word & 3n), va = word >> 5n << 5n;
      for (let row = 0; ;) {
        const here = facts.level[row], at = row * facts.entries + Number((va - this.va[row] & MASK) >> BigInt(facts.regime.shifts[here]));
        if (here >= level - 1 || links[at] < 0) { found.set(at, Math.max(worst, found.get(at) ?? 0)); break; }
        row = links[at];
      }
    }
    return found;
  }
  findChanges() {
    /* By table: 2 with a loud change in or below it, 1 with others; from the last level up. */
    const { facts, states, links } = this, found = new Uint8Array(facts.level.length);
    for (let row = facts.level.length - 1; row >= 0; row--) {
      for (let at = row * facts.entries; at < (row + 1) * facts.entries && found[row] < 2; at++) {
        const here = states[at] >= FIRST_LOUD ? 2 : states[at] >= FIRST_CHANGE ? 1 : 0;
        found[row] = Math.max(found[row], here, this.hiddenBelow.get(at) ?? 0, links[at] < 0 ? 0 : found[links[at]]);
      }
    }
    return found;
  }
  counts() {
    /* Of all tables, those included that a page has no room for. */
    return Object.fromEntries(Object.entries(this.facts.counts).map(([level, counts]) =>
      [level, data.states.map((name) => counts[name] ?? 0)]));
  }
}

class Grid {
  /* A table, one cell an entry, to be pointed at, clicked, or gone through with the keys. */
  constructor(entries, look, open, up) {
    this.columns = 1 << Math.ceil(Math.log2(entries) / 2);
    this.entries = entries; this.size = 1024 / this.columns; this.cursor = 0; this.cells = [];
    this.canvas = el("canvas", { tabindex: 0, role: "application", width: 1024, height: Math.ceil(entries / this.columns) * this.size,
      "aria-label": "translation table: arrows go from entry to entry, Enter opens a table, Backspace goes back up" });
    this.canvas.onmousemove = (event) => this.to(this.index(event), look);
    this.canvas.onclick = (event) => { this.to(this.index(event), look); open(this.cursor); };
    this.canvas.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns,
        Home: -this.cursor, End: this.entries - 1 - this.cursor }[event.key];
      if (step !== undefined) this.to(this.cursor + step, look);
      else if (event.key === "Enter" || event.key === " ") open(this.cursor);
      else if (event.key === "Backspace" || event.key === "Escape") up();
      else return;
      event.preventDefault();
    };
  }
  index(event) {
    const box = this.canvas.getBoundingClientRect(), scale = 1024 / box.width / this.size;
    return Math.floor((event.clientY - box.top) * scale) * this.columns + Math.floor((event.clientX - box.left) * scale);
  }
  to(index, look) {
    if (index < 0 || index >= this.entries || index === this.seen) return;
    const before = this.cursor;
    this.cursor = this.seen = index;
    this.cell(before); this.cell(index);
    look(index);
  }
  show(cells, cursor) {
    this.cells = cells; this.cursor = cursor; this.seen = -1;
    for (let i = 0; i < this.entries; i++) this.cell(i);
  }
  cell(i) {
    const pen = this.canvas.getContext("2d"), size = this.size, [state, below] = this.cells[i];
    const x = (i % this.columns) * size, y = Math.floor(i / this.columns) * size, inset = size / 4;
    pen.clearRect(x, y, size, size);
    pen.fillStyle = COLOURS[state];
    pen.fillRect(x + 0.5, y + 0.5, size - 1, size - 1);
    if (below) {
      pen.strokeStyle = below > 1 ? "#d62728" : "#000a"; pen.lineWidth = Math.max(1, size / (below > 1 ? 8 : 14));
      pen.beginPath();
      pen.moveTo(x + inset, y + inset); pen.lineTo(x + size - inset, y + size - inset);
      pen.moveTo(x + size - inset, y + inset); pen.lineTo(x + inset, y + size - inset);
      pen.stroke();
    }
    if (i === this.cursor) {
      pen.strokeStyle = dark ? "#fff" : "#000"; pen.lineWidth = 2;
      pen.strokeRect(x + 1, y + 1, size - 2, size - 2);
    }
  }
}

function describe(entry, names) {
  const rows = [["level", `${names[entry.level]} ${entry.level}, index ${entry.index}`],
    ["addresses", `${hex(entry.va, 16)} to ${hex(entry.end, 16)}`], ["descriptor at", hex(entry.pa)],
    ["raw", hex(entry.word, 16)], ["state", data.states[entry.state]], ["kind", entry.kind]];
  if (entry.target !== null) rows.push(["leads to", "pa:" + hex(entry.target)]);
  if (BIT11_ONLY.has(entry.state)) rows.splice(4, 0, ["before", hex(entry.word ^ 0x800n, 16)]);
  const fields = entry.pattern.fields.map(([name, bits, meaning]) => [`${name} [${bits}]`, meaning]);
  return table(["", ""], [...rows, ...fields].map(([a, b]) => [a, el("code", {}, b)]));
}

const legendOf = (states) => el("div", { class: "legend" }, ...states.map((state) => {
  const patch = el("i"); patch.style.background = COLOURS[state];
  return el("span", {}, patch, data.states[state]);
}));

function levelBars(names, counts, levels) {
  return levels.map((level) => {
    const bar = el("div", { class: "bar" });
    counts[level].forEach((count, state) => {
      if (!state || !count) return;
      const part = el("i", { title: `${count} × ${data.states[state]}` });
      part.style.flexGrow = count; part.style.background = COLOURS[state];
      bar.append(part);
    });
    return [`${names[level]} ${level}`, bar, counts[level].map((count, state) =>
      state && count ? `${count} ${data.states[state]}` : "").filter(Boolean).join(", ")];
  });
}

function drawMap(map, number) {
  const { facts } = map, diff = facts.diff === null ? null : data.diffs[facts.diff];
  const home = section(`map${number}`, diff ? `tables, ${facts.title}` : `tables of ${facts.title}`, "tables", facts.title);
  const known = new Map((diff?.changes || []).map((change, i) => [`${change.level}:${BigInt(change.va_start)}`, i]));
  home.append(...lines([`root pa:${facts.root}: ${facts.provenance}`,
    [facts.where, facts.created].filter(Boolean).join(", "), facts.kernel].filter(Boolean), "facts"), ...lines(facts.unseen, "bad"));
  if (facts.left_out) home.append(...lines([`${facts.left_out} tables are not shown: too many for a page${diff ? "; crosses tell of them too" : ""}`], "bad"));
  const counts = map.counts(), levels = Object.keys(counts).map(Number).sort((a, b) => a - b);
  const crumbs = el("div", { class: "crumbs" }), side = el("aside", { "aria-live": "polite" });
  const path = [[0, null]];
  const row = () => path[path.length - 1][0];
  const show = (cursor = 0) => {
    crumbs.replaceChildren(...path.map(([r, index], i) => el("button", { onclick: () => { back(i + 1); } },
      `${facts.names[facts.level[r]]}${index === null ? "" : "[" + index + "]"} ${hex(map.va[r], 16)}`)));
    const cells = Array.from({ length: facts.entries }, (_, i) => {
      const at = row() * facts.entries + i, child = map.links[at];
      return [map.states[at], Math.max(map.hiddenBelow.get(at) ?? 0, child < 0 ? 0 : map.below[child])];
    });
    grid.show(cells, cursor);
    side.replaceChildren(el("p", { class: "facts" },
      `table at pa:${hex(map.pa[row()])}, level ${facts.level[row()]}; point at an entry to see it decoded`));
  };
  const back = (length) => {
    if (length < 1 || length >= path.length) return;
    const [, index] = path[length];
    path.length = length; show(index); look(index);
  };
  const look = (index) => {
    const entry = map.entry(row(), index), change = known.get(`${entry.level}:${entry.va}`);
    side.replaceChildren();
    if (change !== undefined) {
      side.append(el("p", { class: "said" }, diff.words[change]));
      const earlier = window.ptinspect.maps[facts.earlier];
      if (earlier && entry.level < 3) side.append(el("button", {
        onclick: () => earlier.reveal(entry.va, entry.level + 1) }, `what hung below it in ${diff.a}`));
    }
    side.append(describe(entry, facts.names));
  };
  const open = (index) => {
    const { child } = map.entry(row(), index);
    if (child === undefined) return look(index);
    path.push([child, index]); show(); look(0);
  };
  const go = (va, level) => { /* to the entry of an address, as far down as tables lead */
    path.length = 1;
    let index;
    for (;;) {
      const here = facts.level[row()], shift = BigInt(facts.regime.shifts[here]);
      index = Number(((va - map.va[row()]) & MASK) >> shift);
      const { child } = map.entry(row(), index);
      if (here >= level || child === undefined) break;
      path.push([child, index]);
    }
    show(index); look(index);
  };
  const grid = new Grid(facts.entries, look, open, () => back(path.length - 1));
  const reveal = (va, level) => { go(va, level); grid.canvas.focus({ preventScroll: true }); crumbs.scrollIntoView(); };
  const used = data.states.map((_, state) => state).filter((state) => levels.some((level) => counts[level][state]));
  home.append(el("div", { class: "bars" }, table(["level", "share of its entries, empty ones left out", ""], levelBars(facts.names, counts, levels))),
    legendOf(used), crumbs, el("div", { class: "map" }, el("div", {}, grid.canvas, ...lines([
      "one cell an entry; a click or Enter opens a table, Backspace goes up"
      + (diff ? "; a cross marks a table with changes below, a red one unexpected changes" : "")], "facts")), side));
  show();
  return { map, facts, counts, side, path, canvas: grid.canvas, open, go, reveal };
}
