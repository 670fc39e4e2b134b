"""Style sheet and script of the report page, written into the page itself so that the file needs nothing else."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --soft: #5b6572; --line: #dde1e6;
  --accent: #0b57d0; --best: #0a6b3b; --warn: #8a4b00; --warn-paper: #fff4e0; --bar: #cfe0fb;
  --onnx: #1f6feb; --openvino: #7a3fd0; --tflite: #c2570c; --ncnn: #0f7b6c; --mnn: #a3195b; --other: #5b6572;
  --pre: #6aa5ff; --inf: #1f5fbf; --post: #9bb8a5; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1c2026; --ink: #e8eaed; --soft: #a1abb8;
  --line: #323942; --accent: #8ab4f8; --best: #6fd39b; --warn: #ffcf87; --warn-paper: #33270f; --bar: #24406b;
  --onnx: #6ea8fe; --openvino: #b794f6; --tflite: #f4a261; --ncnn: #4fc3b0; --mnn: #f48fb1; --other: #a1abb8;
  --pre: #8fbcff; --inf: #4c86dd; --post: #6f947d; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1220px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .3rem 0 .8rem; max-width: 100ch; }
.soft, figcaption { color: var(--soft); font-size: .86rem; }
code, pre { font: .84rem/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: 0; padding: .6rem .8rem; background: var(--card); border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
pre + pre { margin-top: .4rem; }
.lead { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .1rem 1.5rem;
  margin: 1rem 0 0; }
.lead div { padding: .35rem 0; }
.lead dt { color: var(--soft); font-size: .8rem; }
.lead dd { margin: 0; overflow-wrap: anywhere; }
.best-of { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: .8rem; margin: 1.4rem 0 0; }
.best-of div { background: var(--card); border-radius: 8px; padding: .7rem .9rem; }
.best-of b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.best-of span { color: var(--soft); font-size: .84rem; overflow-wrap: anywhere; }
.notes { margin: 1.2rem 0 0; padding: .7rem 1rem .7rem 2rem; background: var(--warn-paper); color: var(--warn);
  border-radius: 8px; font-size: .9rem; overflow-wrap: anywhere; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
.figures, .classes { width: 100%; }
th, td { padding: .38rem .4rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { white-space: normal; vertical-align: bottom; font-weight: 600; font-size: .8rem; }
th.text, td.text { text-align: left; }
thead th { border-bottom: 2px solid var(--line); }
tbody tr:hover { background: var(--card); }
th button { all: unset; cursor: pointer; font: inherit; color: inherit; }
th button:hover { color: var(--accent); }
th button:focus-visible, .point:focus-visible .target, .tile button:focus-visible { outline: 2px solid var(--accent);
  outline-offset: 2px; }
th button::after { content: "\\2195"; opacity: .35; padding-left: .25em; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
td[data-key=bundle] { white-space: normal; overflow-wrap: anywhere; min-width: 9.5rem; }
td.best { color: var(--best); font-weight: 650; }
td .mark-key { vertical-align: -3px; margin-right: .35rem; }
.classes td.ap { background: linear-gradient(90deg, var(--bar) calc(var(--part) * 100%), transparent 0); }
svg text { fill: var(--soft); font: 12px
  system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
svg .label { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
svg .grid, svg .axis { stroke: var(--line); stroke-width: 1; }
svg .front { fill: none; stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
svg .target { fill: transparent; }
svg .point { outline: none; }
.plot .point { cursor: pointer; }
.point.emulated .dot { fill: var(--paper); stroke-width: 2; }
.engine-onnx .dot { stroke: var(--onnx); } .engine-openvino .dot { stroke: var(--openvino); }
.engine-tflite .dot { stroke: var(--tflite); } .engine-ncnn .dot { stroke: var(--ncnn); }
.engine-mnn .dot { stroke: var(--mnn); } .engine-other .dot { stroke: var(--other); }
.plot .point:hover .dot, .plot .point:focus .dot { stroke: var(--ink); stroke-width: 2; }
.engine-onnx { fill: var(--onnx); } .engine-openvino { fill: var(--openvino); }
.engine-tflite { fill: var(--tflite); } .engine-ncnn { fill: var(--ncnn); }
.engine-mnn { fill: var(--mnn); } .engine-other { fill: var(--other); }
.plot { width: 100%; height: auto; max-width: 1120px; display: block; }
.plot-narrow { display: none; }
figure { margin: 0; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .3rem 0 0; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .3rem; }
.small { width: 100%; height: auto; max-width: 300px; display: block; }
.small .bars { fill: var(--inf); }
.small .beyond { fill: var(--tflite); }
.small .mark { stroke: var(--tflite); stroke-width: 1.5; }
.small text { font-size: 11px; }
.latency { display: grid; grid-template-columns: minmax(200px, 1.3fr) 2.2fr 1.6fr 1.6fr; gap: .4rem 1.4rem;
  align-items: start; padding: .8rem 0; border-bottom: 1px solid var(--line); }
.latency .name { overflow-wrap: anywhere; }
.stages { display: flex; height: 18px; border-radius: 3px; overflow: hidden; min-width: 2px; }
.stages i { display: block; min-width: 1px; }
i.pre { background: var(--pre); } i.inf { background: var(--inf); } i.post { background: var(--post); }
i.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .3em;
  vertical-align: -1px; }
.stage-text { font-size: .84rem; margin: .35rem 0 0; font-variant-numeric: tabular-nums; }
.stage-text span { white-space: nowrap; margin-right: .9em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(235px, 1fr)); gap: .8rem; }
.tile { margin: 0; } .tile.wide { grid-column: 1 / -1; }
.tile button { all: unset; cursor: zoom-in; display: block; } .tile.wide button { cursor: zoom-out; }
.tile img { width: 100%; height: auto; display: block; border-radius: 5px; background: var(--card); }
.tile.wide img { max-width: 900px; }
.tile figcaption { padding-top: .25rem; overflow-wrap: anywhere; } .tile figcaption b { color: var(--ink); }
.facts { width: 100%; table-layout: auto; } .facts th, .facts td { text-align: left; white-space: normal;
  vertical-align: top; overflow-wrap: anywhere; } .facts tbody th { font-weight: 400;
  color: var(--soft); width: 15rem; } .facts td { min-width: 9rem; }
details { margin: .6rem 0; border: 1px solid var(--line); border-radius: 8px; padding: .3rem .9rem; }
summary { cursor: pointer; padding: .3rem 0; font-weight: 600; overflow-wrap: anywhere; }
#tip { position: absolute; z-index: 2; pointer-events: none; background: var(--ink); color: var(--paper);
  padding: .45rem .65rem; border-radius: 6px; font-size: .82rem; line-height: 1.4; white-space: pre-line;
  max-width: 20rem; }
footer { margin-top: 3rem; }
@media screen and (max-width: 760px) {
  body { padding: 1.2rem .9rem 3rem; }
  .plot-wide { display: none; } .plot-narrow { display: block; }
  .latency { grid-template-columns: 1fr; } .small { max-width: 430px; }
  .facts tbody th { width: 8.5rem; }
  .best-of { grid-template-columns: 1fr 1fr; gap: .5rem; } .best-of b { font-size: 1.15rem; }
  td[data-key=bundle], .classes td.text { position: sticky; left: 0; background: var(--paper); }
  .tiles { grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); }
}
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --card: #f3f3f3; }
  body { max-width: none; padding: 0; font-size: 9.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  th, td { padding: .2rem .22rem; } table, th { font-size: 6.6pt; } .scroll { overflow: visible; }
  td.text, td[data-key=bundle] { white-space: normal; overflow-wrap: anywhere; min-width: 0; }
  .facts, .facts th, .facts td { font-size: 8pt; }
  th button::after, #tip { display: none; } .tiles { grid-template-columns: repeat(4, 1fr); }
  p, .tile, .latency, tr, .best-of div { break-inside: avoid; } details:not([open]) { display: none; }
  h2, h3, h2 + p { break-after: avoid; }
  .small { max-width: none; } .latency { grid-template-columns: 1.2fr 1.8fr 1.5fr 1.5fr; gap: .3rem .9rem; }
}
"""

SCRIPT = """
(function () {
  "use strict";
  document.querySelectorAll("table.sortable").forEach(function (table) {
    var headings = Array.prototype.slice.call(table.tHead.rows[0].cells);
    headings.forEach(function (heading, column) {
      var button = heading.querySelector("button");
      if (!button) { return; }
      button.addEventListener("click", function () {
        var rising = heading.getAttribute("aria-sort") !== "ascending";
        headings.forEach(function (other) { other.removeAttribute("aria-sort"); });
        heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
        var body = table.tBodies[0];
        Array.prototype.slice.call(body.rows).map(function (row) {
          var raw = row.cells[column].getAttribute("data-value");
          return { row: row, raw: raw, number: raw === "" ? NaN : Number(raw) };
        }).sort(function (a, b) {
          if (a.raw === "" || b.raw === "") { return (a.raw === "") - (b.raw === ""); }
          var order = isNaN(a.number) || isNaN(b.number) ? a.raw.localeCompare(b.raw) : a.number - b.number;
          return rising ? order : -order;
        }).forEach(function (entry) { body.appendChild(entry.row); });
      });
    });
  });
  var tip = document.getElementById("tip");
  function show(mark) {
    var box = mark.querySelector(".dot").getBoundingClientRect();
    tip.textContent = mark.getAttribute("data-tip");
    tip.hidden = false;
    var left = window.scrollX + box.right + 10;
    var most = window.scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = Math.max(window.scrollX + 8, Math.min(left, most)) + "px";
    var above = box.top - tip.offsetHeight - 8;
    tip.style.top = window.scrollY + (above < 4 ? box.bottom + 8 : above) + "px";
  }
  function hide() { tip.hidden = true; }
  document.querySelectorAll("[data-tip]").forEach(function (mark) {
    mark.addEventListener("pointerenter", function () { show(mark); });
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("focus", function () { show(mark); });
    mark.addEventListener("blur", hide);
  });
  document.addEventListener("keydown", function (event) { if (event.key === "Escape") { hide(); } });
  document.querySelectorAll(".tile button").forEach(function (button) {
    button.addEventListener("click", function () {
      var wide = button.parentNode.classList.toggle("wide");
      button.setAttribute("aria-pressed", wide ? "true" : "false");
    });
  });
})();
"""
