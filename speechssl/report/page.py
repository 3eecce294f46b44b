"""The page: one HTML file that refers to nothing outside itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from speechssl.report.labels import clusters, recognition
from speechssl.report.probes import probes
from speechssl.report.read import Experiment
from speechssl.report.sections import anchor, configurations, curves, health, overview, table
from speechssl.report.tasks import tasks
from speechssl.report.topics import topics
from speechssl.report.voices import voices

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--fg:#1d2125;--soft:#66707a;--line:#dfe2e5;--card:#fff;
--c0:#2563a8;--c1:#d0561c;--c2:#23864f;--c3:#8a4fb0;--c4:#b58a00;--c5:#0f8b8d;--c6:#c23b6e;
--c7:#6b6f76;--bad:#b3261e;--sub:#fbe3cf;--del:#f8d4d4;--ins:#d9e7fb}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e4e7ea;--soft:#98a2ac;--line:#2d3338;
--card:#1b1f23;--c0:#6ea8ea;--c1:#f0925c;--c2:#5cc48b;--c3:#bd8fe0;--c4:#e0bb4a;--c5:#4cc7c9;
--c6:#ef7fa8;--c7:#a3a8b0;--bad:#ff8a80;--sub:#54371d;--del:#552727;--ins:#22395a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:28px 24px 60px;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:24px;margin:0 0 2px}h2{font-size:18px;margin:34px 0 10px}
h3{font-size:15px;margin:16px 0 6px}
h4{font-size:13px;margin:10px 0 4px;font-weight:600}
p.sub,p.note,.missing{color:var(--soft);margin:2px 0}p.note{font-size:12.5px}
nav{margin:10px 0 0;font-size:14px}nav a{margin-right:14px}a{color:var(--c0);text-decoration:none}
a:hover{text-decoration:underline}small,.bad{white-space:nowrap}small{color:var(--soft)}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--card);
margin:6px 0 14px}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 12px;border-bottom:1px solid var(--line);vertical-align:top;
white-space:nowrap}tr:last-child td{border-bottom:0}
th{color:var(--soft);font-weight:500;font-size:12.5px;vertical-align:bottom;white-space:normal}
.overview th,.overview td{padding:7px 9px;white-space:normal}
.overview td:first-child{white-space:nowrap}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr));gap:14px;
margin:6px 0 14px}.grid.three{grid-template-columns:repeat(auto-fill,minmax(240px,1fr))}
figure{margin:0;padding:12px 14px 8px;background:var(--card);border:1px solid var(--line);
border-radius:8px;position:relative;min-width:0}
figure.wide{grid-column:1/-1}figure img{width:100%;border-radius:4px;background:#fff}
figcaption{font-weight:600;font-size:14px;margin-bottom:6px;overflow-wrap:anywhere}
figure>svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:11.5px;font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--line);stroke-width:1}svg path{fill:none;stroke-width:1.8;
stroke-linejoin:round}svg .dashed{stroke-dasharray:6 4;stroke-width:2.2}
svg .cursor{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}
SERIES
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;
font-size:12.5px;color:var(--soft);margin:4px 0 2px}
.legend .key{width:20px;height:8px;margin-right:6px;vertical-align:middle}.key line{stroke-width:2}
.tip{position:absolute;top:38px;pointer-events:none;background:var(--card);color:var(--fg);
border:1px solid var(--line);border-radius:6px;padding:5px 9px;font-size:12px;display:none;
box-shadow:0 2px 8px #0003;z-index:2;font-variant-numeric:tabular-nums;white-space:nowrap}
details{margin:8px 0;border:1px solid var(--line);border-radius:8px;background:var(--card);
padding:8px 14px}summary{cursor:pointer;font-weight:600;font-size:14px}
pre{overflow-x:auto;font-size:12.5px;line-height:1.45;margin:8px 0}
.utt{padding:4px 0 10px;border-bottom:1px solid var(--line)}.utt:last-child{border:0}
.w{display:inline-flex;flex-direction:column;padding:1px 5px;margin:2px 1px;border-radius:4px;
font-size:13.5px;line-height:1.35}.w b{font-weight:400}.w i{font-style:normal;color:var(--soft)}
.w.ok i{opacity:.75}.w.sub{background:var(--sub)}.w.del{background:var(--del)}
.w.ins{background:var(--ins)}.w.sub i,.w.ins i{color:var(--fg);font-weight:600}
.clip{margin:8px 0}.clip p{margin:2px 0}.clip audio{display:block;width:min(100%,420px);height:34px}
.clip img{display:block;height:110px;margin:4px 0;border-radius:4px}
.bad{color:var(--bad)}.legendline{font-size:12.5px;color:var(--soft);margin:4px 0}
@media print{details{break-inside:avoid}figure{break-inside:avoid}}
"""
SERIES = "".join(
    f"svg .s{i}{{stroke:var(--c{i})}}svg rect.c{i}{{fill:var(--c{i})}}"
    f"svg .dot.s{i}{{fill:var(--c{i})}}.t{i}{{color:var(--c{i})}}"
    for i in range(8)
)

# The value of every series nearest to the pointer, in a box beside it.
SCRIPT = """
for(const svg of document.querySelectorAll('svg[data-chart]')){
 const d=JSON.parse(svg.dataset.chart),L=58,R=14,W=560,fig=svg.closest('figure');
 const tip=document.createElement('div');tip.className='tip';fig.append(tip);
 const cur=svg.querySelector('.cursor');
 svg.addEventListener('pointermove',e=>{
  const box=svg.getBoundingClientRect(),px=(e.clientX-box.left)/box.width*W;
  const x=d.x[0]+(px-L)/(W-L-R)*(d.x[1]-d.x[0]);
  let near=null;
  for(const s of d.s)for(const v of s.x)if(near===null||Math.abs(v-x)<Math.abs(near-x))near=v;
  const at=L+(near-d.x[0])/(d.x[1]-d.x[0])*(W-L-R);
  cur.setAttribute('x1',at);cur.setAttribute('x2',at);
  tip.textContent='';
  const head=document.createElement('div');head.textContent=d.label+' '+near;tip.append(head);
  for(const s of d.s){let i=0;
   for(let j=1;j<s.x.length;j++)if(Math.abs(s.x[j]-near)<Math.abs(s.x[i]-near))i=j;
   const row=document.createElement('div');row.className='t'+s.c%8;
   row.textContent=s.n+': '+s.y[i]+(s.x[i]===near?'':' at '+s.x[i]);tip.append(row);}
  tip.style.display='block';
  const left=at/W*box.width+svg.offsetLeft,wide=tip.offsetWidth;
  tip.style.left=(left+wide+20>fig.clientWidth?left-wide-10:left+12)+'px';});
 svg.addEventListener('pointerleave',()=>{tip.style.display='none';
  cur.setAttribute('x1',-9);cur.setAttribute('x2',-9);});
}
"""


def render(experiments: Sequence[Experiment], made: str) -> str:
    """The whole page about `experiments`. made: a line that says when and by what."""
    title = ", ".join(e.name for e in experiments)
    if len(title) > 120:
        title = f"{len(experiments)} experiments"
    converted = voices(experiments)
    nav = "".join(
        f'<a href="#{name}">{text}</a>'
        for name, text in (
            ("training", "Training"), ("labels", "Pseudo-labels"), ("probes", "Probes"),
            ("asr", "Recognition"), ("tasks", "Utterances"),
            *([("voices", "Converted voices")] if converted else []),
            ("config", "Configuration"), ("origin", "Origin"), ("trouble", "Troubles"),
        )
    )  # fmt: skip
    parts = (
        overview(experiments),
        f'<div id="training">{curves(experiments)}</div>',
        f'<div id="labels">{clusters(experiments)}{topics(experiments)}</div>',
        f'<div id="probes">{probes(experiments)}</div>',
        f'<div id="asr">{recognition(experiments)}</div>',
        f'<div id="tasks">{tasks(experiments)}</div>',
        f'<div id="voices">{converted}</div>',
        f'<div id="config">{configurations(experiments)}</div>',
        f'<div id="origin">{_origin(experiments)}</div>',
        f'<div id="trouble">{health(experiments)}</div>',
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · speechssl</title>"
        f"<style>{STYLE.replace('SERIES', SERIES)}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="sub">{escape(made)}</p><nav>{nav}</nav>'
        f"{''.join(parts)}<script>{SCRIPT}</script></body></html>\n"
    )


def _origin(experiments: Sequence[Experiment]) -> str:
    """Where each folder lies, and what is known of the code that made it."""
    rows = []
    for one in experiments:
        origin = (one.model or {}).get("provenance") or {}
        known = {k: v for k, v in origin.items() if isinstance(v, str | int | float)}
        shown = ", ".join(f"{k} {v}" for k, v in known.items()) or "no model.json"
        rows.append(
            [
                f'<span id="{anchor(one)}">{escape(one.name)}</span>',
                escape(str(one.path)),
                escape(shown),
            ]
        )
    body = table(("experiment", "folder", "made by"), rows, raw=True)
    return f"<section><h2>Origin</h2>{body}</section>"


def write_page(path: str | Path, text: str) -> Path:
    """Write under a temporary name, then rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
