"use strict";
/* Draws what the page's data hold. Nothing is fetched; every string of the data is set as text. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("main"), nav = document.getElementById("nav");
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const COLOURS = [dark ? "#2a2a30" : "#e9e9ec", "#9db7d5", "#2f6db3", "#f0c27b", "#e0883a", "#b48ead",
    dark ? "#5d5d66" : "#c9c9cf", dark ? "#999" : "#444", "#17a05d", "#7ccf8a", "#8c6d1f", "#c9a227", "#d62728",
    "#8e44ad", "#e377c2", "#ff5fa2"];
  const FIRST_CHANGE = 8, FIRST_LOUD = 10; /* the states from there on: changed; more than what the rewrite does */
  const BIT11_ONLY = new Set([8, 9, 10, 11]);
  const LAYOUT = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: dark ? "#ddd" : "#222", size: 12 }, margin: { l: 60, r: 10, t: 10, b: 40 } };
  const CONFIG = { responsive: true, displaylogo: false }, STILL = { responsive: true, displayModeBar: false };
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
  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;"); /* Plotly knows tags */
  const hex = (value, digits = 0) => "0x" + value.toString(16).padStart(digits, "0");
  const section = (id, title) => {
    const made = el("section", { id }, el("h2", {}, title));
    main.append(made);
    nav.append(el("a", { href: "#" + id }, title));
    return made;
  };
  const table = (heads, rows, numeric = []) => {
    const cell = (tag, text, i) => el(tag, numeric.includes(i) ? { class: "n" } : {}, text);
    return el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((t, i) => cell("th", t, i)))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((t, i) => cell("td", t, i))))));
  };

  const lines = (texts, kind) => texts.map((text) => el("p", { class: kind }, text));

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
      this.below = this.findChanges();
    }
    static async of(facts) {
      const names = { pa: BigUint64Array, va: BigUint64Array, raw: BigUint64Array, decoded: Uint16Array, links: Int32Array };
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
    findChanges() {
      /* By table: 2 with a loud change in or below it, 1 with others; from the last level up. */
      const { facts, states, links } = this, found = new Uint8Array(facts.level.length);
      for (let row = facts.level.length - 1; row >= 0; row--) {
        for (let at = row * facts.entries; at < (row + 1) * facts.entries && found[row] < 2; at++) {
          const here = states[at] >= FIRST_LOUD ? 2 : states[at] >= FIRST_CHANGE ? 1 : 0;
          found[row] = Math.max(found[row], here, links[at] < 0 ? 0 : found[links[at]]);
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
    const home = section(`map${number}`, diff ? `tables, ${facts.title}` : `tables of ${facts.title}`);
    const known = new Map((diff?.changes || []).map((change, i) => [`${change.level}:${BigInt(change.va_start)}`, i]));
    home.append(...lines([`root pa:${facts.root}: ${facts.provenance}`,
      [facts.where, facts.created].filter(Boolean).join(", "), facts.kernel].filter(Boolean), "facts"), ...lines(facts.unseen, "bad"));
    if (facts.left_out) home.append(...lines([`${facts.left_out} tables are not shown: too many for a page`], "bad"));
    const counts = map.counts(), levels = Object.keys(counts).map(Number).sort((a, b) => a - b);
    const crumbs = el("div", { class: "crumbs" }), side = el("aside", { "aria-live": "polite" });
    const path = [[0, null]];
    const row = () => path[path.length - 1][0];
    const show = (cursor = 0) => {
      crumbs.replaceChildren(...path.map(([r, index], i) => el("button", { onclick: () => { back(i + 1); } },
        `${facts.names[facts.level[r]]}${index === null ? "" : "[" + index + "]"} ${hex(map.va[r], 16)}`)));
      const cells = Array.from({ length: facts.entries }, (_, i) => {
        const at = row() * facts.entries + i, child = map.links[at];
        return [map.states[at], child < 0 ? 0 : map.below[child]];
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
        const earlier = window.ptinspect.maps.filter((each) => each.facts.diff === null)[facts.diff]; /* in order */
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
    const reveal = (va, level) => { go(va, level); grid.canvas.focus({ preventScroll: true }); home.scrollIntoView(); };
    const used = data.states.map((_, state) => state).filter((state) => levels.some((level) => counts[level][state]));
    home.append(el("div", { class: "bars" }, table(["level", "share of its entries, empty ones left out", ""], levelBars(facts.names, counts, levels))),
      legendOf(used), crumbs, el("div", { class: "map" }, el("div", {}, grid.canvas, ...lines([
        "one cell an entry; a click or Enter opens a table, Backspace goes up"
        + (diff ? "; a cross marks a table with changes below, a red one unexpected changes" : "")], "facts")), side));
    show();
    return { map, facts, counts, side, path, canvas: grid.canvas, open, go, reveal };
  }

  function drawDiff(diff, number) {
    const home = section(`diff${number}`, `${diff.a} → ${diff.b}`);
    home.append(el("p", { class: "verdict " + (diff.only_bit11 ? "good" : "bad") }, diff.verdict),
      ...lines(diff.unseen, "bad"), ...lines(diff.notes, "facts"));
    if (diff.changes.length) {
      const body = el("ol", { class: "scroll changes" }), said = el("span", { class: "facts" });
      const reveal = (i) => mapOf(number).reveal(BigInt(diff.changes[i].va_start), diff.changes[i].level);
      const draw = (wanted) => {
        const words = wanted.toLowerCase().split(/\s+/).filter(Boolean), kept = [];
        diff.words.forEach((text, i) => { if (words.every((word) => text.toLowerCase().includes(word))) kept.push(i); });
        said.textContent = ` ${kept.length} of ${diff.words.length}` + (diff.changes_total > diff.words.length ? ` (of ${diff.changes_total})` : "");
        body.replaceChildren(...kept.map((i) => el("li", {}, el("button", { onclick: () => reveal(i) }, diff.words[i]))));
      };
      home.append(el("p", {}, "unexpected changes, each opens its table: ", el("input", { type: "search", "aria-label": "filter the changes",
        placeholder: "filter: lost, an address…", oninput: (event) => draw(event.target.value) }), said), body);
      draw("");
    }
    const columns = Object.keys(diff.levels[0] || {}).filter((key) => key !== "name" && key !== "level");
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
    const home = section(`space${number}`, diff ? `address space, ${diff.a} → ${diff.b}` : "address space");
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
    const strips = (diff ? [["before", diff.a], ["shares", diff.b]] : [["shares", data.maps[0].title]]).map(([which, title]) =>
      el("div", { class: "stripe" }, el("span", { class: "facts" }, title), strip(which, title)));
    const told = (shares) => el("code", {}, shares.map((share) => share.text).join(", ") || "nothing");
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
    if (space.left_out) home.append(...lines([`${space.left_out} more regions are not shown`], "bad"));
  }

  const mapOf = (number) => window.ptinspect.maps.find((each) => each.facts.diff === number);

  function drawTrace(trace, number) {
    const home = section(`trace${number}`, trace.title);
    for (const line of trace.facts) home.append(el("p", { class: "facts" }, line));
    const plot = el("div", { class: "plot" });
    home.append(plot);
    const series = trace.series.map((s) => ({ type: "scatter", mode: "lines", line: { shape: "hv" }, name: plain(s.name),
      x: s.x, y: s.y, text: Array.isArray(s.text) ? s.text.map(plain) : s.text, hovertemplate: "%{y} bytes used at %{x}<br>%{text}<extra>%{fullData.name}</extra>" }));
    const shapes = trace.limits.map((limit) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: limit.y, y1: limit.y,
      line: { color: limit.bad ? "#d62728" : "#888", dash: limit.bad ? "solid" : "dot" } }));
    const annotations = trace.limits.map((limit) => ({ xref: "paper", x: 1, y: limit.y, text: plain(limit.name),
      showarrow: false, xanchor: "right", yanchor: "bottom" }));
    Plotly.newPlot(plot, series, { ...LAYOUT, shapes, annotations, yaxis: { title: { text: "bytes of stack used" }, rangemode: "tozero" },
      xaxis: { title: { text: trace.x } } }, CONFIG);
    if (trace.table) home.append(table(trace.table.heads, trace.table.rows, trace.table.numeric));
  }

  function drawCampaign(campaign, number) {
    const home = section(`campaign${number}`, campaign.title);
    for (const line of campaign.facts) home.append(el("p", { class: "facts" }, line));
    const plot = el("div", { class: "plot short" });
    if (campaign.bars.length) {
      home.append(plot);
      Plotly.newPlot(plot, campaign.bars.map((bar) => ({ type: "bar", ...bar, name: plain(bar.name) })),
        { ...LAYOUT, barmode: "stack", showlegend: true, xaxis: { type: "category", automargin: true },
          yaxis: { title: { text: "runs" }, rangemode: "tozero" } }, STILL);
    }
    for (const part of campaign.tables) home.append(el("h3", {}, part.title),
      el("div", { class: "scroll" }, table(part.heads, part.rows, part.numeric)));
  }

  (async () => {
    window.ptinspect = { data, maps: [] };
    try {
      data.diffs.forEach(drawDiff);
      data.spaces.forEach(drawSpace);
      const tables = [];
      for (const facts of data.maps) tables.push(await TableMap.of(facts));
      const order = [...data.maps.keys()].sort((a, b) => (data.maps[a].diff === null) - (data.maps[b].diff === null) || a - b);
      for (const i of order) window.ptinspect.maps[i] = drawMap(tables[i], i);
      const charts = document.getElementById("plotly").textContent;
      if (charts) document.head.append(el("script", {}, new TextDecoder().decode(await unpack(charts))));
      data.traces.forEach(drawTrace);
      data.campaigns.forEach(drawCampaign);
      if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
      document.body.dataset.ready = "yes";
    } catch (error) {
      main.prepend(el("p", { class: "bad" }, `this page cannot be drawn: ${error}`));
      document.body.dataset.ready = "failed";
    }
  })();
})();
