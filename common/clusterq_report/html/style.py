"""Style sheet of the page. Its colours are those of Okabe and Ito, which colour-blind people can distinguish."""

STYLE = """
:root{--paper:#fff;--ink:#1c1e21;--quiet:#5d6470;--rule:#dfe2e7;--box:#f6f7f9;--good:#00785a;--bad:#b34700;
--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#b0568c;--s4:#b98500;--s5:#3a9bd0}
@media (prefers-color-scheme:dark){:root{--paper:#14161a;--ink:#e6e8eb;--quiet:#a0a7b3;--rule:#333941;--box:#1d2025;
--good:#3ec79b;--bad:#ff9a52;--s0:#5cb3ec;--s1:#ff8f45;--s2:#35c795;--s3:#e08fc0;--s4:#e8b53a;--s5:#8ed0f5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.5rem 1rem 3rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .4rem}
h2{font-size:1.2rem;margin:0 0 .6rem;padding-top:.6rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
h1,h2,h3,.lead,li{overflow-wrap:anywhere}
td{overflow-wrap:break-word;max-width:42rem}
.lead{font-size:1.08rem;margin:.2rem 0 .8rem}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.92rem}
a{color:var(--s0)}
section{margin-top:2rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(10.5rem,1fr));gap:.6rem;margin:1.2rem 0 0}
.tiles div{background:var(--box);border:1px solid var(--rule);border-radius:6px;padding:.5rem .7rem}
dt{color:var(--quiet);font-size:.82rem}
dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.remarks{list-style:none;margin:0;padding:0}
.remarks li{position:relative;padding:.15rem 0 .15rem 1.6rem}
.mark{position:absolute;left:0;width:1.1rem;text-align:center;font-weight:700;color:var(--quiet)}
.good .mark{color:var(--good)}
.warning .mark{color:var(--bad)}
.warning{font-weight:600}
figure{margin:.8rem 0 1.8rem}
figure h3{margin:0 0 .2rem}
figcaption,.quiet{color:var(--quiet);font-size:.88rem}
figure svg{display:block;width:100%;height:auto;overflow:visible}
.smalls{display:grid;grid-template-columns:repeat(auto-fill,minmax(12.5rem,1fr));gap:.6rem 1rem}
.small img{display:block;max-width:100%;height:auto;image-rendering:pixelated}
.small .tick{font-size:.74rem;color:var(--quiet);overflow-wrap:anywhere}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;margin:0 0 .2rem;padding:0;font-size:.85rem}
figure svg.swatch{display:inline-block;width:18px;height:10px;margin-right:.35rem}
text{font-size:11px;fill:var(--ink)}
.small text{font-size:9px}
.tick{fill:var(--quiet)}
.end{text-anchor:end}
.middle{text-anchor:middle}
.grid{stroke:var(--rule);stroke-width:1}
.axis,.whisker{stroke:var(--ink);stroke-width:1}
.moment{stroke:var(--quiet);stroke-width:1;stroke-dasharray:3 3}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.d1{stroke-dasharray:6 3}
.d2{stroke-dasharray:2 3}
.band{opacity:.18}
.line.s0{stroke:var(--s0)}.line.s1{stroke:var(--s1)}.line.s2{stroke:var(--s2)}
.line.s3{stroke:var(--s3)}.line.s4{stroke:var(--s4)}.line.s5{stroke:var(--s5)}
.dot.s0,.bar.s0,.band.s0{fill:var(--s0)}.dot.s1,.bar.s1,.band.s1{fill:var(--s1)}.dot.s2,.bar.s2,.band.s2{fill:var(--s2)}
.dot.s3,.bar.s3,.band.s3{fill:var(--s3)}.dot.s4,.bar.s4,.band.s4{fill:var(--s4)}.dot.s5,.bar.s5,.band.s5{fill:var(--s5)}
.bar{opacity:.85}
.cell{fill:var(--box)}
.cell.right{fill:var(--s0)}
.cell.wrong{fill:var(--s1)}
.count{font-size:10px}
.wide{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.2rem .9rem .2rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{color:var(--quiet);font-weight:600}
.figure{text-align:right;white-space:nowrap}
pre{background:var(--box);border:1px solid var(--rule);border-radius:6px;padding:.6rem .8rem;font-size:.85rem;white-space:pre-wrap;overflow-wrap:anywhere}
details{margin:.6rem 0}
summary{cursor:pointer}
.images{display:grid;grid-template-columns:max-content 1fr;gap:.3rem .8rem;align-items:center;font-size:.86rem}
.images img{display:block;max-width:100%;height:auto;image-rendering:pixelated}
footer{margin-top:3rem;color:var(--quiet);font-size:.82rem}
@media print{
:root{--paper:#fff;--ink:#000;--quiet:#444;--rule:#ccc;--box:#f4f4f4;--good:#00785a;--bad:#b34700;
--s0:#0072b2;--s1:#d55e00;--s2:#009e73;--s3:#b0568c;--s4:#b98500;--s5:#3a9bd0}
body{max-width:none;padding:0;font-size:10.5pt;print-color-adjust:exact;-webkit-print-color-adjust:exact}
nav{display:none}
figure,.tiles div,.small,tr,.remarks li{break-inside:avoid}
h2,h3{break-after:avoid}
.wide{overflow:visible}
details::details-content{content-visibility:visible;block-size:auto}
}
"""
