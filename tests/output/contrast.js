const parse = (colour) => { const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
  .getContext("2d"); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); return [...pen.getImageData(0, 0, 1, 1).data]; };
const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] / 255 + under[i] * (1 - top[3] / 255));
const light = (rgb) => { const [r, g, b] = rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const ground = (it) => { const chain = []; for (; it; it = it.parentElement) chain.unshift(parse(getComputedStyle(it).backgroundColor));
  return chain.reduce((under, top) => over(top, under), parse("Canvas")); };
const poor = [];
for (const it of document.querySelectorAll("body *")) {
  if (!it.checkVisibility() || ![...it.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
  const style = getComputedStyle(it), under = ground(it);
  const found = ratio(over(parse(it instanceof SVGElement ? style.fill : style.color), under), under);
  if (found < 4.5) poor.push([it.tagName, it.textContent.slice(0, 40), Math.round(found * 100) / 100]);
}
for (const it of document.querySelectorAll(".curve")) {
  const under = ground(it), found = ratio(parse(getComputedStyle(it).stroke), under);
  if (found < 3) poor.push(["curve", getComputedStyle(it).stroke, Math.round(found * 100) / 100]);
}
return poor;
