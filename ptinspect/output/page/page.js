"use strict";
/* Draws what the page's data hold. Nothing is fetched; every string of the data is set as text. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("main"), nav = document.getElementById("nav");
  const COLOURS = ["#e9e9ec", "#9db7d5", "#2f6db3", "#f0c27b", "#e0883a", "#b48ead", "#c9c9cf", "#444444",
    "#17a05d", "#7ccf8a", "#8c6d1f", "#c9a227", "#d62728", "#8e44ad", "#e377c2", "#ff5fa2"];
  const LOUD = new Set([10, 11, 12, 13, 14, 15]);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const LAYOUT = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: dark ? "#ddd" : "#222", size: 12 }, margin: { l: 60, r: 10, t: 10, b: 40 } };
  const CONFIG = { responsive: true, displaylogo: false }, STILL = { responsive: true, displayModeBar: false };
  const MASK = (1n << 64n) - 1n;

  const el = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "onclick" || key === "oninput") made[key] = value;
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

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  async function unpackNumbers(text, Kind) {
    const planes = await unpack(text), size = Kind.BYTES_PER_ELEMENT, count = planes.length / size;
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
      this.loud = this.findLoud();
    }
    static async of(facts) {
      const names = { pa: BigUint64Array, va: BigUint64Array, raw: BigUint64Array, decoded: Uint16Array, links: Int32Array };
      const parts = { states: await unpack(facts.states) };
      for (const [name, Kind] of Object.entries(names)) parts[name] = await unpackNumbers(facts[name], Kind);
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
    findLoud() {
      /* Tables with a loud change in or below them, from the last level up. */
      const { facts, states, links } = this, found = new Uint8Array(facts.level.length);
      for (let row = facts.level.length - 1; row >= 0; row--) {
        for (let at = row * facts.entries; at < (row + 1) * facts.entries && !found[row]; at++) {
          if (LOUD.has(states[at]) || found[links[at]]) found[row] = 1;
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

  function describe(entry, names) {
    const rows = [["level", `${names[entry.level]} ${entry.level}, index ${entry.index}`],
      ["addresses", `${hex(entry.va, 16)} to ${hex(entry.end, 16)}`], ["descriptor at", hex(entry.pa)],
      ["raw", hex(entry.word, 16)], ["state", data.states[entry.state]], ["kind", entry.kind]];
    if (entry.target !== null) rows.push(["leads to", "pa:" + hex(entry.target)]);
    const fields = entry.pattern.fields.map(([name, bits, meaning]) => [`${name} [${bits}]`, meaning]);
    return table(["", ""], [...rows, ...fields].map(([a, b]) => [a, el("code", {}, b)]));
  }

  async function drawMap(facts, number) {
    const map = await TableMap.of(facts);
    const home = section(`map${number}`, facts.title);
    const fact = (text) => text && home.append(el("p", { class: "facts" }, text));
    fact(`root pa:${facts.root}: ${facts.provenance}`);
    fact([facts.where, facts.created].filter(Boolean).join(", "));
    fact(facts.kernel);
    for (const text of facts.unseen) home.append(el("p", { class: "bad" }, text));
    if (facts.left_out) fact(`${facts.left_out} tables are not shown: too many for a page`);
    const counts = map.counts(), levels = Object.keys(counts).map(Number).sort((a, b) => a - b);
    const legend = el("div", { class: "legend" });
    data.states.forEach((name, state) => {
      if (levels.some((level) => counts[level][state])) {
        const patch = el("i"); patch.style.background = COLOURS[state];
        legend.append(el("span", {}, patch, name));
      }
    });
    const bars = el("div", { class: "plot short" });
    home.append(legend, bars);
    Plotly.newPlot(bars, data.states.map((name, state) => ({
      type: "bar", orientation: "h", name, marker: { color: COLOURS[state] },
      y: levels.map((l) => `${facts.names[l]} ${l}`), x: levels.map((l) => counts[l][state]),
      hovertemplate: `%{y}: %{x} × ${name}<extra></extra>`, visible: state === 0 ? "legendonly" : true,
    })).filter((trace) => trace.x.some(Boolean)), { ...LAYOUT, barmode: "stack", barnorm: "percent",
      yaxis: { autorange: "reversed" }, xaxis: { title: { text: "share of the level's entries, zero entries left out" } },
      showlegend: false }, STILL);
    const crumbs = el("div", { class: "crumbs" }), plot = el("div", { class: "plot" }), side = el("aside");
    home.append(crumbs, el("div", { class: "map" }, plot, side));
    const path = [[0, null]];
    const show = () => {
      const [row] = path[path.length - 1], width = 1 << Math.ceil(Math.log2(facts.entries) / 2);
      crumbs.replaceChildren(...path.map(([r, index], i) => el("button", {
        onclick: () => { path.length = i + 1; show(); } },
      `${facts.names[facts.level[r]]}${index === null ? "" : "[" + index + "]"} ${hex(map.va[r], 16)}`)));
      const z = [], text = [], crosses = { x: [], y: [] };
      for (let i = 0; i < facts.entries; i++) {
        const y = Math.floor(i / width), entry = map.entry(row, i);
        (z[y] ??= []).push(entry.state);
        (text[y] ??= []).push(`[${i}] ${hex(entry.va, 16)}<br>${hex(entry.word, 16)}<br>${data.states[entry.state]}`
          + (entry.target === null ? "" : `<br>${entry.kind} → pa:${hex(entry.target)}`));
        if (entry.child !== undefined && map.loud[entry.child]) { crosses.x.push(i % width); crosses.y.push(y); }
      }
      const scale = COLOURS.flatMap((c, i) => [[i / COLOURS.length, c], [(i + 1) / COLOURS.length, c]]);
      Plotly.react(plot, [
        { type: "heatmap", z, text, hoverinfo: "text", xgap: 1, ygap: 1, showscale: false,
          zmin: -0.5, zmax: COLOURS.length - 0.5, colorscale: scale },
        { type: "scatter", mode: "markers", ...crosses, hoverinfo: "skip", showlegend: false,
          marker: { symbol: "x", color: "#d62728", size: 8 } },
      ], { ...LAYOUT, yaxis: { autorange: "reversed", title: { text: `entry / ${width}` } },
        xaxis: { title: { text: `entry mod ${width}; a click opens a table, a cross marks one with changes below` } } }, CONFIG);
      side.replaceChildren(el("p", { class: "facts" },
        `table at pa:${hex(map.pa[row])}, level ${facts.level[row]}; point at an entry to see it decoded`));
    };
    const at = (event) => {
      const point = event.points.find((p) => p.curveNumber === 0);
      if (!point) return null;
      const width = 1 << Math.ceil(Math.log2(facts.entries) / 2);
      return map.entry(path[path.length - 1][0], point.y * width + point.x);
    };
    const look = (entry) => entry && side.replaceChildren(describe(entry, facts.names));
    const open = (entry) => {
      if (entry && entry.child !== undefined) { path.push([entry.child, entry.index]); show(); }
      look(entry);
    };
    show();
    plot.on("plotly_hover", (event) => look(at(event)));
    plot.on("plotly_click", (event) => open(at(event)));
    return { map, counts, open: (index) => open(map.entry(path[path.length - 1][0], index)), side, path };
  }

  const held = (change) => { /* what lay there before, the first names of it */
    const names = (change.held || []).map((part) => part.name), more = change.held_total - 12;
    return names.length ? names.slice(0, 12).join(", ") + (more > 0 ? ` and ${more} more` : "") : change.region || "";
  };

  function drawDiff(diff, number) {
    const home = section(`diff${number}`, `difference ${diff.a} → ${diff.b}`);
    home.append(el("p", { class: diff.only_bit11 ? "good" : "bad" },
      diff.only_bit11 ? "only bit 11 changed" : `${diff.changes_total} changes are more than bit 11`));
    for (const text of diff.unseen) home.append(el("p", { class: "bad" }, text));
    for (const note of diff.notes) home.append(el("p", { class: "facts" }, note));
    const columns = Object.keys(diff.levels[0] || {}).filter((key) => key !== "name" && key !== "level");
    home.append(table(["level", ...columns.map((c) => c.replaceAll("_", " "))],
      diff.levels.map((l) => [`${l.name} ${l.level}`, ...columns.map((c) => String(l[c]))]), columns.map((_, i) => i + 1)));
    if (!diff.changes.length) return;
    const text = (value) => value === null || value === undefined ? "unreadable" : String(value);
    const rows = diff.changes.map((c) => [c.kinds.join(", "), `${c.va_start} to ${c.va_end}`, String(c.level),
      held(c), c.descriptor_pa, text(c.before), text(c.after)]);
    const body = el("div", { class: "scroll" }), said = el("span", { class: "facts" });
    const draw = (wanted) => {
      const words = wanted.toLowerCase().split(/\s+/).filter(Boolean);
      const kept = rows.filter((row) => words.every((word) => row.join(" ").toLowerCase().includes(word)));
      said.textContent = ` ${kept.length} of ${rows.length}` + (diff.changes_total > rows.length ? ` (of ${diff.changes_total})` : "");
      body.replaceChildren(table(["kinds", "addresses", "level", "region", "descriptor at", "before", "after"],
        kept.slice(0, 2000).map((row) => row.map((t) => el("code", {}, t)))));
    };
    home.append(el("p", {}, el("input", { type: "search", placeholder: "filter: lost, an address, pmd…",
      oninput: (event) => draw(event.target.value) }), said), body);
    draw("");
  }

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
      for (const [i, facts] of data.maps.entries()) window.ptinspect.maps.push(await drawMap(facts, i));
      data.diffs.forEach(drawDiff);
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
