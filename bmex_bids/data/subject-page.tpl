<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
:root { --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --panel: #f6f8fa; --blue: #0969da;
  --pass: #1a7f37; --warn: #9a6700; --fail: #cf222e; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.5 system-ui, -apple-system,
  "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; display: grid;
  grid-template-columns: 13.5rem minmax(0, 1fr); }
a { color: var(--blue); text-decoration: none; } a:hover { text-decoration: underline; }
nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 1.1rem 1rem 2rem;
  background: var(--panel); border-right: 1px solid var(--line); font-size: .87rem; }
nav ul { list-style: none; margin: 0; padding: 0; } nav li li { padding-left: .8rem; }
nav li li a { color: var(--soft); } nav > ul > li { margin-bottom: .7rem; }
nav > ul > li > a { font-weight: 600; color: var(--ink); overflow-wrap: anywhere; }
nav .home { font-weight: 700; color: var(--soft); margin: 0 0 1rem; letter-spacing: .02em; }
nav .elsewhere li { margin: 0; padding: 0; }
nav h2 { font-size: .72rem; text-transform: uppercase; letter-spacing: .07em; color: var(--soft);
  margin: 1.4rem 0 .3rem; }
main { max-width: 1120px; padding: 1.1rem 1.8rem 3rem; width: 100%; }
header { border-bottom: 1px solid var(--line); padding-bottom: .7rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; }
h2.part { font-size: 1.25rem; margin: 1.8rem 0 .2rem; }
h2.part small { font-weight: 400; font-size: .8rem; color: var(--soft); margin-left: .5rem;
  overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.3rem 0 .1rem; }
p { margin: .35rem 0; } p.lead, p.hint { color: var(--soft); margin-top: 0; }
p.hint { font-size: .87rem; margin-bottom: .5rem; max-width: 62rem; }
section { border-bottom: 1px solid var(--line); padding-bottom: 1.5rem; }
section .parts { display: flex; flex-wrap: wrap; column-gap: 1.8rem; align-items: flex-start; }
.item { flex: 1 1 100%; min-width: 0; }
.item-summary { display: contents; } .item-summary > * { flex: 1 1 100%; }
.item-summary > table { flex: 1 1 26rem; min-width: 0; width: auto; align-self: flex-start; }
.item-histogram { flex: 1 1 22rem; } .item-histogram h3 { margin-top: 0; }
.reportlet img, .reportlet object { display: block; width: 100%; border-radius: 4px; }
.reportlet + small { display: block; line-height: 1.3; margin-top: .25rem; font-size: .72rem; color: var(--soft); }
.reportlet + small a { color: var(--soft); overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem;
  margin: .5rem 0 .8rem; }
.figure { background: var(--panel); border: 1px solid var(--line); border-radius: 6px;
  padding: .45rem .7rem; display: flex; flex-direction: column; }
.figure b { font-size: .76rem; font-weight: 600; color: var(--soft); }
.figure span { font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.figure i { font-size: .74rem; font-style: normal; color: var(--soft); }
table.summary { border-collapse: collapse; font-size: .87rem; width: 100%; }
table.summary th, table.summary td { text-align: left; vertical-align: top; padding: .22rem .9rem .22rem 0;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
table.summary th { font-weight: 600; color: var(--soft); white-space: nowrap; }
.badge { display: inline-block; border-radius: 1rem; padding: 0 .6rem; font-size: .74rem;
  font-weight: 700; line-height: 1.35rem; color: #fff; background: var(--soft); vertical-align: .1em; }
.badge.pass, .badge.done { background: var(--pass); } .badge.warn, .badge.skipped,
.badge.not-run { background: var(--warn); } .badge.fail, .badge.failed { background: var(--fail); }
.gate, .banner, p.warning, .fine { border-left: 4px solid var(--soft); background: var(--panel);
  padding: .45rem .8rem; margin: .6rem 0; border-radius: 0 4px 4px 0; overflow-wrap: anywhere; }
.gate.pass, .fine { border-color: var(--pass); background: #f0faf3; }
.gate.warn, p.warning, .banner.skipped, .banner.not-run { border-color: #d4a72c; background: #fff8e1; }
.gate.fail, .banner.failed { border-color: var(--fail); background: #fff0ee; }
.gate ul { margin: .3rem 0; padding-left: 1.2rem; }
details { margin: .4rem 0; } summary { cursor: pointer; font-size: .87rem; color: var(--blue); }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 4px; padding: .7rem;
  overflow: auto; max-height: 28rem; font-size: .78rem; line-height: 1.45; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.methods { max-width: 52rem; } .methods h1, .methods h2, .methods h3 { font-size: 1rem; }
.key { display: inline-block; width: 1.1rem; height: .25rem; vertical-align: middle; }
.key.yellow { background: #e0a800; } .key.green { background: #06d6a0; }
footer { color: var(--soft); font-size: .8rem; margin-top: 1.2rem; }
@media (max-width: 60rem) { body { display: block; }
  nav { position: static; height: auto; border-right: 0; border-bottom: 1px solid var(--line); }
  nav li ul { display: none; } nav > ul > li { display: inline-block; margin: 0 1rem 0 0; }
  nav .home { margin: 0; } main { padding: 1rem; } }
@media print { nav, .reportlet + small { display: none; } body { display: block; } }
</style>
</head>
<body>
<nav aria-label="On this page">
<p class="home">bmex_bids</p>
<ul>
{% for part in sections %}
<li><a href="#{{ part.name }}">{{ part.title }}</a>
{% if part.isnested %}
<ul>
{% for item in part.reportlets if item.subtitle %}
<li><a href="#{{ part.name }}-{{ item.name }}">{{ item.subtitle }}</a></li>
{% endfor %}
</ul>
{% endif %}
</li>
{% endfor %}
</ul>
{% for item in navbar if item %}
<div class="elsewhere">
{{ item }}
</div>
{% endfor %}
</nav>
<main>
<header>
{% for item in header %}
{{ item }}
{% endfor %}
</header>
{% for part in sections %}
<section id="{{ part.name }}">
<h2 class="part">{{ part.title }}{% if part.isnested %} <small>{{ part.name }}</small>{% endif %}</h2>
<div class="parts">
{% for item in part.reportlets %}
<div class="item item-{{ item.name }}">
{% if item.subtitle %}
<h3 id="{{ part.name }}-{{ item.name }}">{{ item.subtitle }}</h3>
{% endif %}
{% if item.description %}
<p class="hint">{{ item.description }}</p>
{% endif %}
{% for content, caption in item.components %}
{{ content | replace("<img ", '<img alt="' ~ item.subtitle ~ " of " ~ part.name ~ '" ') }}
{% if caption %}
<p class="hint">{{ caption }}</p>
{% endif %}
{% endfor %}
</div>
{% endfor %}
</div>
</section>
{% endfor %}
<footer>
{% for item in footer %}
{{ item }}
{% endfor %}
</footer>
</main>
</body>
</html>
