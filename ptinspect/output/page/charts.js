const svg = (name, attributes = {}, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};
const CURVES = ["#2f7fd3", "#cc5a1f", "#2a9457", "#a060c0", "#a8790c", "#c2417c", "#17899a", "#7d7d7d"];

/* The bytes of stacks in use over time, as steps: a depth holds until the next point of that stack. */
class DepthChart {
  constructor(trace) {
    Object.assign(this, { trace, hidden: new Set(), whole: false, cursor: -1 });
    this.points = trace.points.filter(([, stack]) => stack >= 0);
    this.first = this.points[0][0]; this.end = Math.max(this.points.at(-1)[0], this.first + 1);
    [this.from, this.to] = [this.first, this.end];
    this.said = el("p", { class: "facts mono", "aria-live": "polite" }, this.help());
    this.svg = svg("svg", { class: "chart", tabindex: 0, role: "application", "aria-label":
      "stack depth over time: left and right go from point to point, plus and minus look closer and back, 0 shows all" });
    this.legend = el("div", { class: "legend" }, ...trace.stacks.map((stack, i) => {
      const patch = el("i"); patch.style.background = CURVES[i % CURVES.length];
      const box = el("input", { type: "checkbox", checked: "", onchange: () => { this.hidden[box.checked ? "delete" : "add"](i); this.draw(); } });
      return el("label", {}, box, patch, `${stack.name}, of ${stack.size} bytes`);
    }));
    const tall = el("button", { "aria-pressed": "false", onclick: () => {
      this.whole = !this.whole; tall.setAttribute("aria-pressed", this.whole); this.draw(); } }, "up to the stacks' ends");
    this.legend.append(tall, el("button", { onclick: () => this.look(this.first, this.end) }, "all of the time"));
    this.svg.onpointerdown = (event) => { this.began = this.time(event); this.svg.setPointerCapture(event.pointerId); };
    this.svg.onpointermove = (event) => this.point(this.before(this.time(event)), this.time(event));
    this.svg.onpointerup = (event) => {
      const [from, to] = [this.began, this.time(event)].sort((a, b) => a - b);
      delete this.began;
      if (this.x(to) - this.x(from) > 5) this.look(from, to); else this.draw();
    };
    this.svg.onkeydown = (event) => {
      const middle = this.cursor < 0 ? (this.from + this.to) / 2 : this.points[this.cursor][0], wide = this.to - this.from;
      const go = { ArrowLeft: () => this.point(this.cursor - 1), ArrowRight: () => this.point(this.cursor + 1),
        Home: () => this.point(0), End: () => this.point(this.points.length - 1), 0: () => this.look(this.first, this.end),
        "+": () => this.look(middle - wide / 4, middle + wide / 4), "-": () => this.look(middle - wide, middle + wide) }[event.key];
      if (!go) return;
      go(); event.preventDefault();
    };
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }
  help() { return "point at the curve, or go with the arrow keys; drag over a stretch, or + and -, to look closer"; }
  time(event) {
    const at = event.clientX - this.svg.getBoundingClientRect().left;
    return this.from + Math.min(Math.max((at - this.left) / (this.width - this.left - 12), 0), 1) * (this.to - this.from);
  }
  x(at) { return this.left + (at - this.from) / (this.to - this.from) * (this.width - this.left - 12); }
  y(used) { return 300 - used / this.top * 280; }
  before(at) { /* the last point that is not later */
    let low = 0, high = this.points.length;
    while (low < high) { const half = (low + high) >> 1; if (this.points[half][0] <= at) low = half + 1; else high = half; }
    return Math.max(low - 1, 0);
  }
  look(from, to) {
    const wide = Math.min(Math.max(to - from, 1), this.end - this.first);
    this.from = Math.min(Math.max(from, this.first), this.end - wide);
    this.to = this.from + wide;
    this.draw();
  }
  point(number, drag) {
    this.cursor = Math.min(Math.max(number, 0), this.points.length - 1);
    const [at, stack, used, place] = this.points[this.cursor], { trace } = this;
    this.said.textContent = `${at} ${trace.unit}: ${used} bytes used on the ${trace.stacks[stack].name}, pc ${trace.places[place]}`;
    if (drag === undefined && (at < this.from || at > this.to)) this.look(at - (this.to - this.from) / 2, at + (this.to - this.from) / 2);
    this.mark(drag);
  }
  mark(drag) {
    this.marks.replaceChildren();
    if (this.began !== undefined && drag !== undefined) {
      const [a, b] = [this.x(this.began), this.x(drag)].sort((p, q) => p - q);
      this.marks.append(svg("rect", { x: a, y: 20, width: b - a, height: 280, class: "chosen" }));
    }
    if (this.cursor < 0) return;
    const [at, , used] = this.points[this.cursor], x = this.x(Math.max(at, this.from));
    this.marks.append(svg("line", { x1: x, x2: x, y1: 20, y2: 300, class: "cursor" }), svg("circle", { cx: x, cy: this.y(used), r: 4, class: "cursor" }));
  }
  draw() {
    const { trace, points } = this, bounds = trace.stacks.map((stack) => stack.size);
    this.width = Math.max(this.svg.clientWidth, 300); this.left = 64;
    const shown = points.filter(([at, stack]) => !this.hidden.has(stack) && at >= this.from && at <= this.to);
    const used = [...trace.stacks.map((_, i) => this.held(i)), ...shown.map((p) => p[2])];
    const most = (this.whole ? bounds : used).reduce((a, b) => Math.max(a, b), 1);
    this.top = most * 1.05;
    const parts = [], tick = (span, steps) => steps(span / 6);
    const binary = (size) => 2 ** Math.ceil(Math.log2(Math.max(size, 1)));
    const decimal = (size) => { const ten = 10 ** Math.floor(Math.log10(size)); return [1, 2, 5, 10].find((n) => n * ten >= size) * ten; };
    for (let used = 0, step = tick(this.top, binary); used <= this.top; used += step) {
      parts.push(svg("line", { x1: this.left, x2: this.width - 12, y1: this.y(used), y2: this.y(used), class: "grid" }),
        svg("text", { x: this.left - 6, y: this.y(used) + 4, "text-anchor": "end" }, String(used)));
    }
    const step = Math.max(tick(this.to - this.from, decimal), 1);
    for (let at = Math.ceil(this.from / step) * step; at <= this.to; at += step) {
      parts.push(svg("line", { x1: this.x(at), x2: this.x(at), y1: 300, y2: 305, class: "grid" }),
        svg("text", { x: this.x(at), y: 318, "text-anchor": "middle" }, String(at)));
    }
    parts.push(svg("text", { x: this.left, y: 12 }, "bytes of stack used"),
      svg("text", { x: this.width - 12, y: 334, "text-anchor": "end" }, trace.unit));
    trace.stacks.forEach((stack, i) => {
      if (this.hidden.has(i)) return;
      parts.push(svg("path", { d: this.path(i), stroke: CURVES[i % CURVES.length], class: "curve", "stroke-dasharray": i < CURVES.length ? "" : "6 3" }));
      if (stack.size <= this.top) parts.push(svg("line", { x1: this.left, x2: this.width - 12, y1: this.y(stack.size), y2: this.y(stack.size), class: "limit" }),
        svg("text", { x: this.width - 16, y: this.y(stack.size) + 14, "text-anchor": "end", class: "limit" }, `${stack.size} bytes: the end`));
    });
    for (const { stack, used, at, place } of trace.deepest) {
      if (this.hidden.has(stack) || at < this.from || at > this.to) continue;
      const right = this.x(at) > this.width / 2;
      parts.push(svg("circle", { cx: this.x(at), cy: this.y(used), r: 3.5, fill: CURVES[stack % CURVES.length] }),
        svg("text", { x: this.x(at) + (right ? -7 : 7), y: this.y(used) + 4, "text-anchor": right ? "end" : "start", class: "place" }, `${used}: ${place}`));
    }
    this.marks = svg("g");
    this.svg.replaceChildren(...parts, this.marks);
    this.mark();
  }
  held(stack) { /* what was in use of a stack when the stretch that is shown begins */
    if (this.hidden.has(stack)) return 0;
    for (let i = this.before(this.from); i >= 0; i--) if (this.points[i][1] === stack && this.points[i][0] <= this.from) return this.points[i][2];
    return 0;
  }
  path(stack) {
    let d = "", seen = null;
    for (const [at, number, used] of this.points) {
      if (number !== stack) continue;
      if (at > this.to) break;
      if (at < this.from) { seen = used; continue; }
      if (!d) d = seen === null ? `M${this.x(at)} ${this.y(used)}` : `M${this.left} ${this.y(seen)}`;
      d += `H${this.x(at)}V${this.y(used)}`;
      seen = used;
    }
    if (!d && seen !== null) d = `M${this.left} ${this.y(seen)}`;
    return seen === null ? "" : d + `H${this.width - 12}`;
  }
}

async function drawTrace(trace, number) {
  const home = section(`trace${number}`, trace.title, "stack depth");
  home.append(...lines(trace.facts, "facts"));
  trace.points = JSON.parse(new TextDecoder().decode(await unpack(trace.points)));
  if (trace.points.some(([, stack]) => stack >= 0)) {
    const chart = new DepthChart(trace);
    home.append(chart.legend, chart.svg, chart.said);
    chart.draw();
    trace.chart = chart;
  }
  home.append(...trace.tables.filter((part) => !part.title).map(titled),
    el("div", { class: "beside" }, ...trace.tables.filter((part) => part.title).map(titled)));
}
