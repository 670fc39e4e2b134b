"""Style sheet and script of a run's page, written into the page itself so that the file needs nothing else."""

from __future__ import annotations

from typing import Final

__all__ = ["SCRIPT", "STYLE"]

STYLE: Final = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --soft: #5b6572; --line: #dde1e6;
  --accent: #0b57d0; --good: #0a6b3b; --warn: #8a4b00; --warn-paper: #fff4e0;
  --c0: #1f6feb; --c1: #0f7b6c; --c2: #c2570c; --c3: #7a3fd0; --c4: #a8326e; --c5: #5b6572; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1c2026; --ink: #e8eaed; --soft: #a1abb8;
  --line: #323942; --accent: #8ab4f8; --good: #6fd39b; --warn: #ffcf87; --warn-paper: #33270f;
  --c0: #6ea8fe; --c1: #4fc3b0; --c2: #f4a261; --c3: #b794f6; --c4: #f48fb8; --c5: #a1abb8; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1180px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem; }
h3 { font-size: .95rem; margin: 1.3rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .3rem 0 .8rem; max-width: 95ch; }
.soft { color: var(--soft); font-size: .88rem; }
code { font: .84rem/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .8rem; margin: 1.2rem 0 0; }
.cards div { background: var(--card); border-radius: 8px; padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.4rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.cards span { color: var(--soft); font-size: .84rem; overflow-wrap: anywhere; }
.notes { margin: 1.2rem 0 0; padding: .7rem 1rem .7rem 2rem; background: var(--warn-paper); color: var(--warn);
  border-radius: 8px; font-size: .9rem; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 1.2rem 1.6rem; }
figure { margin: 0; }
.curves figcaption { font-weight: 600; font-size: .9rem; }
.plot { width: 100%; height: auto; display: block; touch-action: pan-y; cursor: crosshair; }
.plot:focus { outline: none; }
.plot:focus-visible, .scroll:focus-visible, summary:focus-visible, .tile button:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; }
svg text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .cursor { stroke: var(--soft); stroke-width: 1; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .dashed { stroke-dasharray: 5 4; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .2rem 0 0; padding: 0; list-style: none;
  color: var(--soft); font-size: .82rem; }
.legend li { display: flex; align-items: center; gap: .35rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid var(--line); font-size: .8rem; vertical-align: bottom; }
td.best { color: var(--good); font-weight: 650; }
.facts { width: 100%; } .facts th, .facts td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.facts th { font-weight: 400; color: var(--soft); width: 13rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: .8rem; }
.tile { margin: 0; } .tile.wide { grid-column: 1 / -1; }
.tile button { all: unset; cursor: zoom-in; display: block; width: 100%; } .tile.wide button { cursor: zoom-out; }
.tile img { width: 100%; height: auto; display: block; border-radius: 5px; background: var(--card); }
.tile.wide img { max-width: 900px; }
.tile figcaption { padding-top: .25rem; font-size: .84rem; color: var(--soft); overflow-wrap: anywhere; }
.tile figcaption b { color: var(--ink); }
details { margin: .8rem 0; border: 1px solid var(--line); border-radius: 8px; padding: .3rem .9rem; }
summary { cursor: pointer; padding: .3rem 0; font-weight: 600; }
#tip { position: absolute; z-index: 2; pointer-events: none; background: var(--ink); color: var(--paper);
  padding: .45rem .65rem; border-radius: 6px; font-size: .82rem; line-height: 1.4; white-space: pre-line; }
footer { margin-top: 3rem; }
@media screen and (max-width: 640px) {
  body { padding: 1.1rem .9rem 3rem; } .cards { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .cards b { font-size: 1.15rem; } .tiles { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .facts th { width: 7.5rem; } th, td { padding: .35rem .4rem; }
}
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --card: #f3f3f3; }
  body { max-width: none; padding: 0; font-size: 9.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  .figures { grid-template-columns: 1fr 1fr; } .tiles { grid-template-columns: repeat(4, 1fr); }
  .tile.wide { grid-column: auto; } #tip { display: none; } .scroll { overflow: visible; }
  p, .tile, tr, figure, .cards div { break-inside: avoid; } h2, h3 { break-after: avoid; }
  details:not([open]) { display: none; }
}
"""

SCRIPT: Final = """
(function () {
  "use strict";
  var tip = document.getElementById("tip");
  function written(value, percent) {
    if (value === null || value === undefined) { return "-"; }
    return percent ? (100 * value).toFixed(1) + " %" : Number(value.toPrecision(4)).toString();
  }
  document.querySelectorAll("svg[data-curves]").forEach(function (plot) {
    var data = JSON.parse(plot.getAttribute("data-curves"));
    var left = data.box[0], right = data.box[1], last = Math.max(data.epochs - 1, 1);
    var cursor = plot.querySelector(".cursor"), epoch = data.epochs;
    function show() {
      var x = left + (epoch - 1) / last * (right - left);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.setAttribute("visibility", "visible");
      tip.textContent = "epoch " + epoch + data.curves.map(function (curve) {
        return "\\n" + curve.name + "  " + written(curve.values[epoch - 1], data.percent);
      }).join("");
      tip.hidden = false;
      var box = plot.getBoundingClientRect(), scale = box.width / plot.viewBox.baseVal.width;
      var place = window.scrollX + box.left + x * scale + 12;
      var most = window.scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8;
      if (place > most) { place = window.scrollX + box.left + x * scale - tip.offsetWidth - 12; }
      tip.style.left = Math.max(window.scrollX + 4, place) + "px";
      tip.style.top = window.scrollY + box.top + data.box[2] * scale + 4 + "px";
    }
    function hide() { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); }
    plot.addEventListener("pointermove", function (event) {
      var box = plot.getBoundingClientRect();
      var x = (event.clientX - box.left) * plot.viewBox.baseVal.width / box.width;
      epoch = Math.min(data.epochs, Math.max(1, Math.round((x - left) / (right - left) * last) + 1));
      show();
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("focus", show);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", function (event) {
      var steps = { ArrowLeft: epoch - 1, ArrowRight: epoch + 1, Home: 1, End: data.epochs };
      if (event.key === "Escape") { hide(); return; }
      if (!(event.key in steps)) { return; }
      event.preventDefault();
      epoch = Math.min(data.epochs, Math.max(1, steps[event.key]));
      show();
    });
  });
  document.querySelectorAll(".tile button").forEach(function (button) {
    button.addEventListener("click", function () {
      var wide = button.parentNode.classList.toggle("wide");
      button.setAttribute("aria-pressed", wide ? "true" : "false");
    });
  });
})();
"""
