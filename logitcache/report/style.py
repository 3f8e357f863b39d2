"""Style sheet of the reports, with light, dark, print, wide and phone layouts."""

from logitcache.report.charts import STYLE

__all__ = ["SHEET"]

_DAY = (
    "color-scheme:light;--paper:#f6f7f8;--sheet:#fff;--ink:#1d2329;--quiet:#5b6570;--line:#dde2e7;"
    "--lead:#005f95;--good:#00694d;--bad:#a83c00;--shade:#eef1f4"
)
_NIGHT = (
    "color-scheme:dark;--paper:#0f1215;--sheet:#171b20;--ink:#e6e9ec;--quiet:#9aa5b1;--line:#343c45;"
    "--lead:#6cc0f0;--good:#3ecf9f;--bad:#ff9a62;--shade:#20262c"
)
_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header,footer{max-width:1136px;margin:0 auto;padding:0 16px}
header{padding-top:32px}
h1{font-size:26px;line-height:1.25;margin:0 0 6px;font-weight:650;overflow-wrap:anywhere}
h2{font-size:20px;margin:44px 0 4px;padding-top:16px;border-top:1px solid var(--line);font-weight:650}
h3{font-size:15px;margin:0 0 8px;font-weight:600}section>h3{margin-top:20px}
p{margin:0 0 10px;max-width:76ch;overflow-wrap:anywhere}
.quiet,figcaption,footer{color:var(--quiet)}
code{font:.92em ui-monospace,"SF Mono",Menlo,Consolas,monospace;background:var(--shade);padding:1px 4px;border-radius:4px;
overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(158px,1fr));gap:12px;margin:20px 0 12px}
.tile,figure,.card,.pair,.advice,.scroll{background:var(--sheet);border:1px solid var(--line);border-radius:8px}
.tile{padding:12px 16px}
.tile b{display:block;font-size:20px;line-height:1.4;font-weight:650;font-variant-numeric:tabular-nums}
.tile span{color:var(--quiet);font-size:13px;display:block}
.good{color:var(--good)}.bad{color:var(--bad)}
.advice{padding:12px 16px;margin:0 0 8px;border-left:4px solid var(--lead)}
.advice h3{margin-bottom:4px}
.advice ul{margin:0;padding-left:18px}.advice li{margin:2px 0;max-width:90ch;overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,354px),1fr));gap:16px;margin:16px 0}
figure{margin:0;padding:14px 10px 12px;min-width:0;break-inside:avoid}
@media (min-width:500px){figure{padding:16px}.tile b{font-size:24px}}
figure h3,figcaption{padding:0 4px}
figure>svg{display:block;width:100%;max-width:400px;height:auto;margin:0 auto}
figcaption{font-size:13px;line-height:1.45;margin-top:10px}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 20px;margin:16px 0}
dt{color:var(--quiet)}dd{margin:0;overflow-wrap:anywhere}
figure .scroll{border:0;margin:0}figure th,figure td{padding:4px 6px}
@media (min-width:900px){.split{display:grid;grid-template-columns:minmax(0,1fr) 357px;gap:24px;align-items:start}
.split.turned{grid-template-columns:357px minmax(0,1fr);gap:16px}}
.split>figure,.split>.scroll{margin:16px 0}
.scroll{overflow-x:auto;margin:12px 0;background:linear-gradient(90deg,var(--sheet) 30%,transparent) 0 0/40px 100% no-repeat local,
linear-gradient(270deg,var(--sheet) 30%,transparent) 100% 0/40px 100% no-repeat local,
linear-gradient(90deg,var(--line),transparent) 0 0/14px 100% no-repeat scroll,
linear-gradient(270deg,var(--line),transparent) 100% 0/14px 100% no-repeat scroll,var(--sheet)}
.hint{display:none;color:var(--quiet);font-size:13px;margin:12px 0 -8px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{font-weight:600;color:var(--quiet);font-size:13px;vertical-align:bottom}
th,td{padding:6px 12px;text-align:right;border-bottom:1px solid var(--line)}
td{white-space:nowrap}
tr:last-child td{border-bottom:0}
th.word,td.word{text-align:left}
td.word{white-space:normal;max-width:26em;overflow-wrap:break-word}
td.word+td.word{min-width:8em}figure td.word+td.word{min-width:0}
tr.sum td{font-weight:600;background:var(--shade)}
details{margin:12px 0}
summary{cursor:pointer;color:var(--lead)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:12px;margin:16px 0}
.card,.pair{display:flex;gap:12px;padding:12px;break-inside:avoid;min-width:0;font-size:14px;line-height:1.4}
.card div,.pair div{min-width:0;overflow-wrap:anywhere}
.card p,.pair p{margin:0 0 2px}.pair img{margin-bottom:6px}
img{width:88px;height:88px;object-fit:contain;background:var(--shade);border-radius:4px;flex:none;display:block}
img.small{image-rendering:pixelated}
.pair{flex-wrap:wrap}.pair>div{flex:1 1 120px}
.columns{columns:16em;column-gap:32px;margin:8px 0;padding:0;list-style:none;font-size:13px;font-variant-numeric:tabular-nums}
.columns li{display:flex;justify-content:space-between;gap:12px;break-inside:avoid;overflow-wrap:anywhere}
footer{margin-top:48px;padding-bottom:32px;padding-top:12px;font-size:13px;overflow-wrap:anywhere}
@media screen and (max-width:640px){.hint{display:block}th,td{padding:6px 8px}
td.word+td.word{min-width:4em}td.word+td.text{min-width:15em}}
@media (max-width:500px){.tile:last-child:nth-child(odd){grid-column:1/-1}}
@page{margin:12mm}
@media print{body{background:none;font-size:10pt}h2,h3{break-after:avoid}h2{margin-top:24px}header{padding-top:0}
main,header,footer{padding:0}figure{padding:10px}
figure>svg{max-width:284px}figcaption{font-size:8.5pt;line-height:1.35;margin-top:6px}
.split{display:block}table{font-size:9pt}.tile,figure,.card,.pair,.advice,.scroll{border-color:#bbb}
.scroll{overflow:visible}th,td{padding:3px 8px}a{color:inherit}
.grid{grid-template-columns:1fr 1fr;gap:10px}
.cards{grid-template-columns:1fr 1fr 1fr}.tile b{font-size:15pt}summary{color:inherit}.tiles{grid-template-columns:repeat(4,1fr)}}
"""
SHEET = f":root{{{_DAY}}}@media (prefers-color-scheme:dark){{:root{{{_NIGHT}}}}}@media print{{:root{{{_DAY}}}}}{_RULES}{STYLE}"
