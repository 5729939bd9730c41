// The board's page: filters in the address, parts of the board as the server tells of them.
"use strict";

const $ = (id) => document.getElementById(id);
const parts = new Map(); // what the server told last, by the part's name
const boxes = new Map(); // the elements that show them
const picked = new Map(); // which value of a metric its chart shows
let about = null;
let source = null;
let ahead = 0; // milliseconds that the server's clock is before ours
let heard = 0;
let lost = true;
let announced = 0;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const now = () => Date.now() + ahead;

function ago(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${seconds} s`;
}

// -- filters: the address says what is shown, so that it can be kept and passed on ----------------

const query = () => new URLSearchParams(location.search);

function choose(change) {
  const chosen = query();
  change(chosen);
  for (const [name, value] of [...chosen]) if (!value) chosen.delete(name);
  const text = chosen.toString();
  history.pushState(null, "", text ? `?${text}` : location.pathname);
  show();
}

function keys() {
  return [...query()].filter(([name]) => name.startsWith("key."));
}

function fill(select, values, label = (value) => value) {
  select.replaceChildren(...values.map((value) => element("option", { value }, label(value))));
}

const words = (name) => (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll("_", " ");
const spans = { "15m": "15 minutes", "1h": "1 hour", "6h": "6 hours", "24h": "24 hours", "7d": "7 days", "30d": "30 days" };

function prepare() {
  const form = $("filters");
  fill(form.domain, ["", ...about.jobs], (job) => (job ? words(job) : "All domains"));
  fill(form.range, about.ranges, (range) => spans[range] ?? range);
  fill(form.dimension, about.dimensions, words);
  form.querySelector("fieldset").hidden = about.dimensions.length === 0;
  $("zone").textContent = about.zone;
  form.domain.addEventListener("change", () => choose((q) => q.set("domain", form.domain.value)));
  form.range.addEventListener("change", () => choose((q) => q.set("range", form.range.value)));
  form.until.addEventListener("change", () => choose((q) => q.set("until", form.until.value)));
  form.dimension.addEventListener("change", () => { form.value.value = ""; offer(); });
  let waiting = 0;
  form.value.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(offer, 250); });
  form.value.addEventListener("focus", offer);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!form.value.value) return;
    choose((q) => q.set(`key.${form.dimension.value}`, form.value.value));
    form.value.value = "";
  });
  addEventListener("popstate", show);
}

async function offer() {
  const form = $("filters");
  const asked = new URLSearchParams({ dimension: form.dimension.value, begins: form.value.value, domain: form.domain.value });
  const answer = await fetch(`keys?${asked}`).catch(() => null);
  if (answer?.ok) $("values").replaceChildren(...(await answer.json()).map((value) => element("option", { value })));
}

function show() {
  const chosen = query();
  const form = $("filters");
  form.domain.value = chosen.get("domain") ?? "";
  form.range.value = chosen.get("range") ?? about.range;
  form.until.value = chosen.get("until") ?? "";
  $("scope").textContent = form.domain.value ? words(form.domain.value) : "all domains";
  document.title = `${$("scope").textContent} · Velocity board`;
  $("chips").replaceChildren(
    ...keys().map(([name, value]) => {
      const label = `${words(name.slice(4))}: ${value}`;
      const button = element("button", { type: "button", "aria-label": `${label}: remove` }, `${label} ✕`);
      button.addEventListener("click", () => { choose((q) => q.delete(name)); form.value.focus(); });
      return element("li", {}, button);
    }),
  );
  parts.clear();
  clear();
  listen();
}

function clear() {
  for (const box of boxes.values()) {
    const chart = box.querySelector(".chart");
    if (chart) { seen.unobserve(chart); Plotly.purge(chart.firstChild); }
  }
  boxes.clear();
  $("domains").replaceChildren();
  [...$("attention").querySelectorAll(".box")].forEach((box) => box.remove());
}

// -- what the server tells ------------------------------------------------------------------------

function listen() {
  source?.close();
  const asked = query();
  asked.delete("wall");
  source = new EventSource(`events?${asked}`);
  source.onmessage = (message) => {
    const told = JSON.parse(message.data);
    heard = Date.now();
    ahead = told.now - heard;
    lost = false;
    for (const [name, part] of Object.entries(told.parts)) receive(name, part);
    status();
    announce(told.parts);
  };
  source.onerror = () => {
    lost = true;
    status();
    // A refusal ends the stream for good; a lost server is asked again by the browser itself.
    if (source.readyState === EventSource.CLOSED) refused(asked);
  };
}

async function refused(asked) {
  const answer = await fetch(`events?${asked}`).catch(() => null);
  if (answer && !answer.ok) {
    const why = await answer.json().catch(() => null);
    if (why?.error) banner(why.error);
  } else answer?.body?.cancel();
  setTimeout(() => { if (source.readyState === EventSource.CLOSED) listen(); }, 3000);
}

function receive(name, part) {
  parts.set(name, part);
  if (part.kind === "layout") layout(part);
  else if (part.kind === "card") card(name, part);
  else if (part.kind === "funnel") funnel(name, part);
  else if (part.kind === "alerts") alerts(name, part);
  else if (part.kind === "letters") letters(name, part);
}

function layout(part) {
  clear(); // told again when the server is back
  const groups = new Map();
  for (const job of part.jobs) {
    const id = `domain-${job}`;
    const cards = element("div", { class: "cards" });
    const section = element("section", { "aria-labelledby": id, "data-domain": job }, element("h2", { id }, words(job)), cards);
    groups.set(job, cards);
    $("domains").append(section);
  }
  for (const name of part.cards) {
    const box = element("article", { class: "box", "data-part": name });
    boxes.set(name, box);
    groups.get(name.slice(5).split(".")[0]).append(box);
  }
  for (const name of [...(part.alerts ? ["alerts"] : []), "letters", ...part.funnels]) {
    const box = element("article", { class: "box", "data-part": name });
    boxes.set(name, box);
    $("attention").append(box);
  }
}

function banner(text) {
  if (!text) $("banner").hidden = true;
  else if ($("banner").hidden || $("banner").textContent !== text) {
    $("banner").textContent = text;
    $("banner").hidden = false;
  }
}

function status() {
  const told = parts.get("status");
  const silent = lost || Date.now() - heard > 15000;
  const state = silent ? "not connected" : told?.down ? "store down" : told?.empty === null ? "reading" : "live";
  const pill = $("connection");
  if (pill.textContent !== state) pill.textContent = state;
  pill.className = `pill ${state === "live" ? "up" : state === "reading" ? "" : "down"}`;
  if (silent && heard) banner("The board's server is not reached. What is shown is from before; it is tried again.");
  else if (told?.down) banner(`The store does not answer: ${told.down}. What is shown is from before; it is asked again.`);
  else if (!silent) banner("");
  const empty = told?.empty === true && !told.down;
  $("empty").hidden = !empty;
  $("domains").hidden = empty;
  $("attention").hidden = empty;
  age();
}

// A document that should have come and has not makes its metric stale, whatever the reason.
function age() {
  for (const [name, part] of parts) {
    if (part.kind !== "card" || !boxes.has(name)) continue;
    const old = part.written_at === null ? 0 : now() - part.written_at;
    const stale = old > part.stale_after;
    const box = boxes.get(name);
    box.classList.toggle("stale", stale);
    const pill = box.querySelector(".pill.stale");
    if (!pill) continue;
    pill.hidden = !stale;
    const text = `Stale: last document ${ago(old)} ago`;
    if (stale && pill.textContent !== text) pill.textContent = text;
  }
}

function announce(changed) {
  const first = Object.keys(changed).find((name) => changed[name].kind === "card" && changed[name].tile);
  if (!first || Date.now() - announced < 30000) return;
  announced = Date.now();
  const { title, tile } = changed[first];
  const value = tile.values[0];
  $("live").textContent = `${title}: ${value.text} ${value.unit} ${value.label} in ${tile.window}${tile.provisional ? ", provisional" : ""}`;
}

// -- boxes ----------------------------------------------------------------------------------------

function card(name, part) {
  const box = boxes.get(name);
  if (!box) return;
  const before = box.querySelector(".headline b")?.textContent;
  if (!box.firstChild) frame(name, part, box);
  const tile = part.tile;
  const at = (selector) => box.querySelector(selector);
  at(".pill.provisional").hidden = !tile?.provisional;
  const headline = at(".headline");
  const others = at(".others");
  if (!tile) {
    headline.replaceChildren(element("b", {}, "–"));
    at(".when").textContent = "No window in this time.";
    others.replaceChildren();
  } else {
    const [first, ...rest] = tile.values;
    headline.className = `headline${tile.provisional ? " provisional" : ""}${first.text.length > 14 ? " longer" : first.text.length > 9 ? " long" : ""}`;
    const unit = [first.unit, first.label.toLowerCase(), first.highest ? "highest" : ""].filter(Boolean).join(" · ");
    headline.replaceChildren(element("b", {}, first.text), element("span", {}, unit));
    const complete = tile.complete;
    at(".when").replaceChildren(
      tile.window,
      ...(complete ? [element("br"), "complete ", complete.window, ": ", element("strong", {}, `${complete.values[0].text} ${complete.values[0].unit}`.trim())] : []),
    );
    others.replaceChildren(
      ...rest.map((value) =>
        element("div", {}, element("dt", {}, value.label), element("dd", {}, value.text, value.unit ? element("small", {}, ` ${value.unit}`) : null, value.highest ? element("small", {}, " · highest") : null)),
      ),
    );
    if (before !== undefined && before !== first.text) {
      box.classList.remove("fresh");
      void box.offsetWidth; // so that the mark begins anew
      box.classList.add("fresh");
    }
  }
  at(".notes").textContent = part.notes.join(" ");
  draw(name);
}

function frame(name, part, box) {
  const id = `title-${name}`;
  box.setAttribute("aria-labelledby", id);
  const pick = element("select", { "aria-label": `${part.title}: value in the chart` });
  fill(pick, part.charts.map((chart) => chart.name), words);
  pick.addEventListener("change", () => { picked.set(name, pick.value); draw(name); });
  const table = element("details", {}, element("summary", {}, `${part.title} as a table`), element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${part.title}: table` }));
  table.addEventListener("toggle", () => tabulate(name));
  // The drawing has elements of its own; a screen reader is told what it shows, and has the table.
  const plot = element("div", { class: "plot", "aria-hidden": "true" });
  const chart = element("div", { class: "chart", role: "img" }, plot);
  box.append(
    element("header", {}, element("h3", { id }, part.title), element("span", { class: "state" }, element("span", { class: "pill provisional", hidden: true }, "provisional"), element("span", { class: "pill stale", hidden: true }))),
    element("p", { class: "about" }, part.description),
    element("p", { class: "headline" }),
    element("p", { class: "when" }),
    element("dl", { class: "others" }),
    element("label", { class: "pick", hidden: part.charts.length < 2 }, "Chart", pick),
    chart,
    element("ul", { class: "legend", "aria-hidden": "true" }),
    element("p", { class: "notes" }),
    table,
  );
  chart.dataset.name = name;
  seen.observe(chart);
}

const visible = new Set();
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const name = entry.target.dataset.name;
    if (entry.isIntersecting) { visible.add(name); draw(name); } else visible.delete(name);
  }
}, { rootMargin: "300px" });

const chartOf = (name) => {
  const { charts } = parts.get(name);
  return charts.find((chart) => chart.name === picked.get(name)) ?? charts[0];
};

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw(name) {
  const box = boxes.get(name);
  if (!box || !parts.has(name)) return;
  tabulate(name);
  const chart = chartOf(name);
  box.querySelector(".chart").setAttribute("aria-label", spoken(name, chart));
  if (!visible.has(name)) return; // it is drawn when it comes into sight
  const target = box.querySelector(".plot");
  const colours = style("--series").split(" ");
  const colour = (i, key) => (key === "all others" ? style("--rest") : colours[i % colours.length]);
  const traces = [];
  chart.series.forEach((series, i) => {
    for (const [values, provisional] of [[series.final, false], [series.provisional, true]]) {
      if (!values.some((value) => value !== null)) continue;
      const tint = colour(i, series.key);
      // A bar that is none is an element all the same; a line needs what is missing, to break there.
      const there = (column) => (chart.bars ? column.filter((_, at) => values[at] !== null) : column);
      const common = {
        x: there(chart.x), y: there(values), name: series.key, showlegend: false, customdata: there(chart.spans),
        hovertemplate: `<b>%{y:,} ${chart.unit}</b> ${escape_(series.key)}<br>%{customdata}${provisional ? " · provisional" : ""}<extra></extra>`,
      };
      traces.push(
        chart.bars
          ? { ...common, type: "bar", ...(chart.categories ? {} : { width: chart.width * 0.82, offset: 0 }), marker: { color: provisional ? style("--card") : tint, line: { color: provisional ? tint : style("--card"), width: provisional ? 1.5 : 0.5 }, pattern: provisional ? { shape: "/", fgcolor: tint, bgcolor: style("--card"), size: 6, solidity: 0.45, fillmode: "replace" } : {} } }
          : { ...common, type: "scatter", mode: "lines+markers", connectgaps: false, line: { color: tint, width: 2.5, dash: provisional ? "dot" : "solid" }, marker: { color: provisional ? style("--card") : tint, symbol: provisional ? "circle-open" : "circle", size: provisional ? 9 : values.length > 30 ? 3 : 6, line: { width: 2, color: tint } } },
      );
    }
  });
  const size = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const axis = { fixedrange: true, gridcolor: style("--grid"), linecolor: style("--line"), tickfont: { size: size * 0.82, color: style("--soft") }, zeroline: false };
  Plotly.react(target, traces, {
    barmode: "stack", bargap: 0.12, margin: { l: size * 3.4, r: 6, t: 8, b: size * 2.6 }, separators: ".,",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: getComputedStyle(document.body).fontFamily, color: style("--ink") },
    xaxis: chart.categories ? { ...axis, type: "category" } : { ...axis, type: "date", range: parts.get(name).times, nticks: 6, tickformatstops: [{ dtickrange: [null, 3600000], value: "%H:%M" }, { dtickrange: [3600000, 86399999], value: "%H:%M\n%-d %b" }, { dtickrange: [86400000, null], value: "%-d %b" }] },
    yaxis: { ...axis, rangemode: "tozero", nticks: 5, tickformat: "~s" },
    hoverlabel: { font: { size: size * 0.95 } }, hovermode: "closest", dragmode: false,
  }, { displayModeBar: false, responsive: true });
  box.querySelector(".legend").replaceChildren(
    ...(chart.series.length > 1 || chart.series[0]?.key !== "all" ? chart.series : []).map((series, i) => {
      const mark = element("i");
      mark.style.background = colour(i, series.key);
      return element("li", {}, mark, series.key);
    }),
  );
}

const escape_ = (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]).replace(/[%{}]/g, "");

function spoken(name, chart) {
  const part = parts.get(name);
  const form = chart.bars ? "bars" : "lines";
  const span = chart.spans.length ? `${chart.spans[0]} to ${chart.spans[chart.spans.length - 1]}` : "no window";
  return `${part.title}, ${chart.label}${chart.unit ? ` in ${chart.unit}` : ""}: ${form} for ${chart.series.length} keys, ${span}. The table below has the figures.`;
}

// The figures of a chart for those who don't see it; made only while it is open.
function tabulate(name) {
  const details = boxes.get(name).querySelector("details");
  if (!details.open) return;
  const chart = chartOf(name);
  const format = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
  const cell = (series, i) => {
    const parts_ = [series.final[i], series.provisional[i]];
    const [final, early] = parts_.map((value) => (value === null ? "" : format.format(value)));
    return early ? `${final ? `${final} + ` : ""}${early} provisional` : final || "–";
  };
  const head = element("tr", {}, element("th", { scope: "col" }, "Window"), ...chart.series.map((series) => element("th", { scope: "col", class: "n" }, series.key)));
  const rows = chart.spans.map((span, i) => element("tr", {}, element("th", { scope: "row" }, span), ...chart.series.map((series) => element("td", { class: "n" }, cell(series, i)))));
  details.querySelector(".scroll").replaceChildren(
    element("table", {}, element("caption", { class: "hidden" }, `${chart.label}${chart.unit ? ` in ${chart.unit}` : ""}`), element("thead", {}, head), element("tbody", {}, ...rows.reverse())),
  );
}

function titled(name, title) {
  const box = boxes.get(name);
  if (!box) return null;
  const id = `title-${name}`;
  box.setAttribute("aria-labelledby", id);
  box.replaceChildren(element("header", {}, element("h3", { id }, title)));
  return box;
}

function big(text, unit) {
  return element("p", { class: "headline" }, element("b", {}, text), element("span", {}, unit));
}

function table(columns, rows) {
  const cell = (tag, column, content) => {
    const made = element(column.label ? tag : "td", { class: column.class ?? "" }, content);
    if (made.tagName === "TH") made.setAttribute("scope", "col");
    return made;
  };
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": columns[0].label }, element("table", {},
    element("thead", {}, element("tr", {}, ...columns.map((column) => cell("th", column, column.label)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...columns.map((column) => cell("td", column, column.of(row))))))));
}

function alerts(name, part) {
  const box = titled(name, "Stuck transactions");
  if (!box) return;
  box.classList.toggle("attention", part.any);
  box.classList.toggle("calm", !part.any);
  if (!part.any) box.append(element("p", { class: "fine" }, "✓ None is stuck"));
  else {
    box.append(big(part.stuck, "stuck now"), table(
      [{ label: "Transaction", of: (row) => row.transaction }, { label: "Stage", of: (row) => row.stage }, { label: "Since", of: (row) => row.since }, { label: "Where", of: (row) => row.by }],
      part.oldest,
    ));
  }
  const counts = Object.entries(part.by_status).map(([state, count]) => `${count} ${state}`);
  if (counts.length) box.append(element("p", { class: "notes" }, `Began in this time: ${counts.join(", ")}.`));
}

function bar(share, lost = 0) {
  const made = element("span", { class: "bar", "aria-hidden": "true" });
  made.style.width = `${Math.max(share * 100, 0.5)}%`;
  if (lost) {
    const part = element("span", { class: "lost" });
    part.style.width = `${Math.min(lost, 1) * 100}%`;
    made.append(part);
  }
  return made;
}

function funnel(name, part) {
  const box = titled(name, part.title);
  if (!box) return;
  box.classList.add("funnel");
  if (part.provisional) box.firstChild.append(element("span", { class: "pill provisional" }, "provisional"));
  if (!part.stages.length) {
    box.append(element("p", { class: "about" }, "No transaction in this time."));
    return;
  }
  const heads = { moved: "Moved on", dropped: "Lost", stuck: "Stuck" };
  box.append(table(
    [{ label: "Stage", of: (row) => row.stage }, { label: "Entered", class: "n", of: (row) => row.entered }, { label: "", class: "draw", of: (row) => bar(row.share, row.lost) },
      ...part.columns.map((column) => ({ label: heads[column], class: "n", of: (row) => row[column] }))],
    part.stages,
  ));
}

function letters(name, part) {
  const box = titled(name, "Dead letters");
  if (!box) return;
  box.classList.toggle("calm", !part.causes.length);
  if (part.why) box.append(element("p", { class: "notes" }, part.causes.length ? `From before: ${part.why}` : `Not counted: ${part.why}`));
  if (part.causes.length) {
    box.append(big(part.total, "set aside"), table(
      [{ label: "Cause", of: (row) => row.cause }, { label: "Count", class: "n", of: (row) => row.count }, { label: "", class: "draw", of: (row) => bar(row.share) }, { label: "Last", of: (row) => row.last }],
      part.causes,
    ));
  } else if (!part.why) box.append(element("p", { class: "fine" }, "✓ None in this time"));
}

// -- how it looks ---------------------------------------------------------------------------------

const themes = ["system", "light", "dark"];
const dark = matchMedia("(prefers-color-scheme: dark)");

function paint() {
  const chosen = localStorage.getItem("theme") ?? "system";
  const theme = chosen === "system" ? (dark.matches ? "dark" : "light") : chosen;
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = `Theme: ${chosen}`;
  const wall = query().has("wall");
  document.documentElement.toggleAttribute("data-wall", wall);
  $("wall").setAttribute("aria-pressed", String(wall));
  for (const name of boxes.keys()) if (name.startsWith("card:")) draw(name);
}

$("theme").addEventListener("click", () => {
  const chosen = localStorage.getItem("theme") ?? "system";
  localStorage.setItem("theme", themes[(themes.indexOf(chosen) + 1) % themes.length]);
  paint();
});
$("wall").addEventListener("click", () => {
  const chosen = query();
  if (chosen.has("wall")) chosen.delete("wall"); else chosen.set("wall", "1");
  const text = chosen.toString();
  history.replaceState(null, "", text ? `?${text}` : location.pathname);
  paint();
});
dark.addEventListener("change", paint);

// On a wall nobody scrolls: what does not fit comes screen by screen.
const SCREEN = 20000;
setInterval(() => {
  if (!document.documentElement.hasAttribute("data-wall")) return;
  const root = document.scrollingElement;
  const end = root.scrollTop + root.clientHeight >= root.scrollHeight - 4;
  root.scrollTo({ top: end ? 0 : root.scrollTop + root.clientHeight * 0.85 });
}, SCREEN);

function tick() {
  if (!about) return;
  const time = new Date(now());
  $("clock").textContent = new Intl.DateTimeFormat("en-GB", { timeZone: about.zone, weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" }).format(time);
  status();
}

async function begin() {
  paint();
  const answer = await fetch("about").catch(() => null);
  if (!answer?.ok) { setTimeout(begin, 2000); return; }
  about = await answer.json();
  prepare();
  show();
  tick();
  setInterval(tick, 1000);
}

begin();
