"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const chart = document.getElementById("chart");
  const drawing = document.getElementById("drawing");
  const heads = document.getElementById("heads");
  const detail = document.getElementById("detail");
  const everything = document.getElementById("all");
  const withLocks = document.getElementById("locks");
  const ROW = 24, LEFT = 52, FOLDED = 28, CHARACTER = 7.6, BEYOND = 15;
  const folded = new Set();
  let rows = [], places = new Map(), chosen = -1, lefts = [], widths = [], asked = 0;

  function told() {
    return page.rows.map((r) => ({
      n: r.n, lane: r.lane, text: r.text, hover: r.hover, letter: r.letter, decisive: r.decisive, from: r.lane, to: r.to,
    }));
  }

  function delivered() {
    const known = new Map(page.rows.map((r) => [r.n, r]));
    return page.deliveries.map(([n, lane, source, text]) => {
      const row = known.get(n);
      return { n, lane, from: source, to: lane, text, hover: row ? row.text : text, letter: row ? row.letter : "",
        decisive: Boolean(row && row.decisive), soft: !row };
    });
  }

  function lay() {
    rows = everything.checked ? delivered() : told();
    rows = rows.filter((row) => !folded.has(row.lane));
    places = new Map();
    rows.forEach((row, at) => { if (!places.has(row.n)) places.set(row.n, at); });
    const used = new Set(rows.map((row) => row.lane));
    const open = page.lanes.map((_, lane) => used.has(lane) && !folded.has(lane));
    const room = Math.max(chart.clientWidth - LEFT - 2, 300);
    const small = page.lanes.filter((_, lane) => !open[lane] && (folded.has(lane) || everything.checked)).length;
    const wide = Math.max((room - small * FOLDED) / Math.max(open.filter(Boolean).length, 1), 230);
    let left = LEFT;
    lefts = []; widths = [];
    page.lanes.forEach((_, lane) => {
      const width = open[lane] ? wide : folded.has(lane) ? FOLDED : 0;
      lefts.push(left); widths.push(width); left += width;
    });
    drawing.setAttribute("width", left);
    drawing.setAttribute("height", Math.max(rows.length, 1) * ROW + 8);
    name();
    draw();
  }

  function name() {
    heads.replaceChildren();
    page.lanes.forEach((lane, at) => {
      if (!widths[at]) return;
      const button = document.createElement("button");
      button.textContent = folded.has(at) ? "+" : lane.title;
      button.title = folded.has(at) ? `show ${lane.title}` : `fold ${lane.title}`;
      button.style.width = `${widths[at]}px`;
      button.setAttribute("aria-expanded", String(!folded.has(at)));
      button.addEventListener("click", () => {
        if (folded.has(at)) folded.delete(at); else folded.add(at);
        lay();
      });
      heads.append(button);
    });
  }

  function make(kind, given, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const y = (at) => at * ROW + ROW / 2 + 4;

  /* The row of a delivery, or of the last one before it that is shown. */
  function near(n) {
    if (places.has(n)) return places.get(n);
    let low = 0, high = rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rows[middle].n <= n) low = middle + 1; else high = middle;
    }
    return low - 0.5;
  }

  function draw() {
    const first = Math.max(Math.floor(chart.scrollTop / ROW) - BEYOND, 0);
    const last = Math.min(first + Math.ceil(chart.clientHeight / ROW) + 2 * BEYOND, rows.length);
    show(first, printing ? rows.length : last);
  }

  function show(first, last) {
    const parts = [definitions()];
    const top = first * ROW, bottom = last * ROW + 8;
    for (let at = first; at < last; at++) {
      const kind = at === chosen ? "chosen" : at % 2 ? "back" : "";
      if (kind) parts.push(make("rect", { class: kind, x: 0, y: at * ROW + 4, width: "100%", height: ROW }));
    }
    page.lanes.forEach((_, lane) => {
      if (widths[lane]) parts.push(make("line", { class: "life", x1: lefts[lane] + 4, x2: lefts[lane] + 4, y1: top, y2: bottom }));
    });
    for (const bar of page.bars) {
      const from = near(bar.first), to = near(bar.last);
      if (to < first || from > last || !widths[bar.lane]) continue;
      if (!withLocks.checked && (bar.kind === "lock" || bar.kind === "waits")) continue;
      parts.push(drawBar(bar, y(from), y(to)));
    }
    for (let at = first; at < last; at++) parts.push(...drawRow(rows[at], at));
    drawing.replaceChildren(...parts);
  }

  function definitions() {
    const made = make("defs", {});
    const pattern = make("pattern", { id: "late", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
    pattern.append(make("line", { class: "hatch", x1: 0, y1: 0, x2: 0, y2: 6 }));
    const head = make("marker", { id: "head", viewBox: "0 0 6 6", refX: 6, refY: 3, markerWidth: 6, markerHeight: 6, orient: "auto" });
    head.append(make("path", { class: "head", d: "M0 0L6 3L0 6z" }));
    made.append(pattern, head);
    return made;
  }

  function drawBar(bar, from, to) {
    const x = lefts[bar.lane], tall = Math.max(to - from, 6);
    const made = bar.kind === "waits"
      ? make("line", { class: "waits", x1: x + 11, x2: x + 11, y1: from, y2: from + tall })
      : make("rect", { class: bar.kind, x: x + (bar.kind === "lock" ? 1 : -1), y: from, width: bar.kind === "lock" ? 6 : 10, height: tall, rx: 2 });
    made.append(make("title", {}, `${bar.name}: deliveries ${bar.first} to ${bar.last}`));
    return made;
  }

  function drawRow(row, at) {
    const parts = [], line = y(at);
    parts.push(make("text", { class: "n", x: 4, y: line + 4 }, String(row.n)));
    if (row.from >= 0 && row.to >= 0 && row.from !== row.to && widths[row.from] && widths[row.to]) {
      const right = row.from < row.to;
      const from = lefts[row.from] + (right ? 10 : -2), to = lefts[row.to] + (right ? -3 : 11);
      parts.push(make("path", { class: "arrow", d: `M${from} ${line + 10}L${to} ${line + 10}`, "marker-end": "url(#head)" }));
    }
    const mark = `${row.decisive ? "\u25b6 " : ""}${row.letter ? `${row.letter} ` : ""}`;
    const room = Math.floor((widths[row.lane] - 24) / CHARACTER);
    const whole = mark + row.text;
    const text = whole.length > room ? `${whole.slice(0, Math.max(room - 1, 1))}\u2026` : whole;
    const made = make("text", { class: row.decisive ? "decisive" : row.soft ? "soft" : "event", x: lefts[row.lane] + 14, y: line + 4, "data-row": at }, text);
    made.append(make("title", {}, row.hover || row.text));
    made.addEventListener("click", () => choose(at));
    parts.push(made);
    return parts;
  }

  function choose(at) {
    chosen = Math.min(Math.max(at, 0), rows.length - 1);
    const row = rows[chosen];
    if (!row) return;
    detail.textContent = `${page.lanes[row.lane].name}: ${row.text}  \u2014  ${row.hover}`;
    const top = chosen * ROW;
    if (top < chart.scrollTop) chart.scrollTop = top;
    if (top + 3 * ROW > chart.scrollTop + chart.clientHeight) chart.scrollTop = top + 3 * ROW - chart.clientHeight;
    draw();
  }

  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15, Home: -Infinity, End: Infinity };
  chart.addEventListener("keydown", (event) => {
    if (event.key in moves) {
      event.preventDefault();
      choose(chosen + moves[event.key]);
    } else if (event.key === "Enter" && rows[chosen]) {
      folded.add(rows[chosen].lane);
      lay();
    }
  });
  chart.addEventListener("scroll", () => {
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(draw);
  });
  everything.addEventListener("change", () => { chosen = -1; lay(); });
  withLocks.addEventListener("change", draw);
  window.addEventListener("resize", lay);
  let printing = false;
  window.addEventListener("beforeprint", () => { printing = rows.length < 1000; draw(); });
  window.addEventListener("afterprint", () => { printing = false; draw(); });
  lay();
})();
