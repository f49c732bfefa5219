// The console: reads /api/status each second, and lets one try a user. Data is only ever set as text.
"use strict";

const POLL_MS = 1000;
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

async function call(path, options) {
  const response = await fetch(path, options);
  const body = await response.json();
  if (!response.ok) throw Object.assign(new Error(body.error), { code: body.code });
  return body;
}

function age(timeMs) {
  const seconds = Math.max(0, (Date.now() - Number(timeMs)) / 1000);
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const milliseconds = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms`;
const short = (name, prefix) => name.replace(prefix, "").toLowerCase().replaceAll("_", " ");

// ---- live figures ----

function showState(text, ok) {
  byId("state").textContent = text;
  byId("state").className = ok ? "ok" : "bad";
}

function showTiles(status) {
  const live = status.releases.find((release) => release.release_id === status.live_release_id);
  byId("tile-release").textContent = live ? live.release_id : "none";
  byId("tile-release").title = live ? live.release_id : "";
  byId("tile-release-age").textContent = live ? `cut ${age(live.created_time_ms)} ago` : "popularity answers";
  byId("tile-items").textContent = whole.format(status.num_available);
  byId("tile-answers").textContent = `${whole.format(status.num_answers)} answers given`;
  const total = status.stages.total;
  byId("tile-p50").textContent = total ? milliseconds(total.p50_ms) : "–";
  byId("tile-p99").textContent = total ? `p99 ${milliseconds(total.p99_ms)}` : "";
  const learner = status.learner;
  byId("tile-learned").textContent = learner ? whole.format(learner.num_events_learned) : "–";
  byId("tile-rate").textContent = learner
    ? `${whole.format(learner.events_per_second)} events/s, ${whole.format(learner.lag_records)} waiting`
    : "the learner does not answer";
  byId("tile-stalled").textContent = learner ? learner.problem || learner.stalled : "";
  const all = learner && learner.quality.find((quality) => quality.segment === "all");
  byId("tile-recall").textContent = all ? all.recall_at_10.toFixed(3) : "–";
  byId("tile-popularity").textContent = all ? `popularity ${all.popularity_recall_at_10.toFixed(3)}` : "";
}

function showStages(stages) {
  const longest = Math.max(...Object.values(stages).map((stage) => stage.p50_ms), 0.001);
  const rows = Object.entries(stages).map(([name, stage]) => {
    const row = make("tr");
    const bar = make("div", "bar");
    bar.style.width = `${(100 * stage.p50_ms) / longest}%`;
    const barCell = make("td", "bar-cell");
    barCell.append(bar);
    row.append(
      make("td", "", name),
      make("td", "num", milliseconds(stage.p50_ms)),
      make("td", "num", milliseconds(stage.p99_ms)),
      barCell,
    );
    return row;
  });
  byId("stages").replaceChildren(...rows);
}

function showReleases(status) {
  const rows = status.releases.map((release) => {
    const live = release.release_id === status.live_release_id;
    const state = short(release.state, "RELEASE_STATE_");
    const shares = ["recall@10", "popularity_recall@10"].map((name) => release.metrics[name]);
    const row = make("tr", live ? "live" : "");
    row.title = release.reason;
    row.append(
      make("td", "mono", release.release_id),
      make("td", "", live ? "live" : state === "live" ? "was live" : state),
      ...shares.map((share) => make("td", "num", share === undefined ? "–" : share.toFixed(4))),
      make("td", "num", age(release.created_time_ms)),
    );
    return row;
  });
  byId("releases").replaceChildren(...rows);
}

// ---- the curve ----

const MARGIN = { left: 40, right: 10, top: 10, bottom: 22 };
let curve = [];

function scales() {
  const box = byId("chart").getBoundingClientRect();
  const xs = curve.map((point) => Number(point.num_events));
  const highest = Math.max(...curve.flatMap((p) => [p.recall_at_10, p.popularity_recall_at_10]), 0.01) * 1.1;
  const first = xs[0];
  const span = Math.max(1, xs[xs.length - 1] - first);
  const x = (n) => MARGIN.left + ((n - first) / span) * (box.width - MARGIN.left - MARGIN.right);
  const y = (r) => box.height - MARGIN.bottom - (r / highest) * (box.height - MARGIN.top - MARGIN.bottom);
  return { box, xs, highest, x, y };
}

function niceStep(highest) {
  const raw = highest / 6;
  const power = 10 ** Math.floor(Math.log10(raw));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
}

function showCurve() {
  const chart = byId("chart");
  byId("chart-empty").hidden = curve.length > 1;
  if (curve.length < 2) return chart.replaceChildren();
  const { box, xs, highest, x, y } = scales();
  const parts = [];
  const step = niceStep(highest);
  for (let value = 0; value <= highest; value += step) {
    parts.push(draw("line", { class: "grid", x1: MARGIN.left, x2: box.width - MARGIN.right, y1: y(value), y2: y(value) }));
    parts.push(draw("text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, Number(value.toFixed(4))));
  }
  for (const share of [0, 0.5, 1]) {
    const n = xs[0] + share * (xs[xs.length - 1] - xs[0]);
    const anchor = ["start", "middle", "end"][share * 2];
    const unit = share === 1 ? " events" : "";
    parts.push(draw("text", { x: x(n), y: box.height - 5, "text-anchor": anchor }, whole.format(n) + unit));
  }
  for (const [name, field] of [["popularity", "popularity_recall_at_10"], ["model", "recall_at_10"]]) {
    const points = curve.map((point, i) => `${x(xs[i]).toFixed(1)},${y(point[field]).toFixed(1)}`).join(" ");
    parts.push(draw("polyline", { class: name, points }));
  }
  chart.replaceChildren(...parts);
}

function showPoint(event) {
  if (curve.length < 2) return;
  const { box, xs, x } = scales();
  const mouse = event.clientX - box.left;
  let nearest = 0;
  xs.forEach((n, i) => { if (Math.abs(x(n) - mouse) < Math.abs(x(xs[nearest]) - mouse)) nearest = i; });
  const point = curve[nearest];
  const at = x(xs[nearest]);
  byId("chart").querySelector(".cross")?.remove();
  byId("chart").append(draw("line", { class: "cross", x1: at, x2: at, y1: MARGIN.top, y2: box.height - MARGIN.bottom }));
  const tip = byId("chart-tip");
  tip.hidden = false;
  tip.textContent = `${whole.format(xs[nearest])} events\nHeadrace ${point.recall_at_10.toFixed(4)}\npopularity ${point.popularity_recall_at_10.toFixed(4)}`;
  tip.style.left = `${Math.min(at + 10, box.width - tip.offsetWidth)}px`;
}

function hidePoint() {
  byId("chart-tip").hidden = true;
  byId("chart").querySelector(".cross")?.remove();
}

async function poll() {
  try {
    const status = await call("/api/status");
    showState(status.ready ? "serving" : "starting", status.ready);
    showTiles(status);
    showStages(status.stages);
    showReleases(status);
    if (byId("chart-tip").hidden) {
      curve = status.learner ? status.learner.curve : curve;
      showCurve();
    }
  } catch (error) {
    showState("the gateway does not answer", false);
  }
  setTimeout(poll, POLL_MS);
}

// ---- try a user ----

let asked = { user: "", items: new Set() };

function eventButton(action, itemId) {
  const button = make("button", "", action);
  button.type = "button";
  button.addEventListener("click", () => track(button, action, itemId));
  return button;
}

function showAnswer(answer, previous) {
  const rows = answer.recommendations.map((item, i) => {
    const row = make("li", previous && !previous.has(item.item_id) ? "new" : "");
    const title = make("span", "title", item.title || item.item_id);
    title.title = `${item.title} (${item.item_id})`;
    row.append(make("span", "place", i + 1), title);
    for (const source of item.sources) row.append(make("span", "tag", short(source, "CANDIDATE_SOURCE_")));
    row.append(make("span", "score", item.score.toFixed(2)), eventButton("click", item.item_id), eventButton("like", item.item_id));
    return row;
  });
  byId("recommendations").replaceChildren(...rows);
  const facts = [answer.release_id ? `release ${answer.release_id}` : "no model used"];
  if (!answer.fallback_reason.endsWith("UNSPECIFIED")) facts.push(`fallback: ${short(answer.fallback_reason, "FALLBACK_REASON_")}`);
  if (!answer.shortfall_reason.endsWith("UNSPECIFIED")) facts.push(`fewer items: ${short(answer.shortfall_reason, "SHORTFALL_REASON_")}`);
  if (answer.degraded) facts.push("degraded");
  facts.push(answer.stages.map((stage) => `${stage.stage} ${milliseconds(stage.latency_ms)}`).join(", "));
  byId("answer-facts").textContent = facts.join(" · ");
}

function showHistory(events) {
  const rows = events.toReversed().map((event) => {
    const row = make("li");
    const title = make("span", "title", event.title || event.item_id);
    title.title = event.item_id;
    row.append(title, make("span", "tag", short(event.action, "ACTION_")), make("span", "score", age(event.event_time_ms)));
    return row;
  });
  byId("history").replaceChildren(...(rows.length ? rows : [make("li", "note", "No events of this user.")]));
}

function say(text, bad) {
  byId("ask-state").textContent = text;
  byId("ask-state").className = bad ? "bad" : "";
}

async function history(user) {
  try {
    return await call(`/api/user?${new URLSearchParams({ user_id: user, limit: 12 })}`);
  } catch (error) {
    if (error.code === "NOT_FOUND") return { num_events: 0, events: [] };
    throw error;
  }
}

async function ask(user) {
  const query = new URLSearchParams({ user_id: user, k: byId("k").value || 10 });
  const [answer, known] = await Promise.all([call(`/api/recommend?${query}`), history(user)]);
  const previous = asked.user === user ? asked.items : null;
  asked = { user, items: new Set(answer.recommendations.map((item) => item.item_id)) };
  showAnswer(answer, previous);
  showHistory(known.events);
  return Number(known.num_events);
}

async function track(button, action, itemId) {
  const user = asked.user;
  const start = performance.now();
  button.disabled = true;
  try {
    const before = Number((await history(user)).num_events);
    const event = { user_id: user, item_id: itemId, action: `ACTION_${action.toUpperCase()}` };
    await call("/api/track", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(event) });
    say("sent; waiting for the history");
    while (Number((await history(user)).num_events) <= before) {
      if (performance.now() - start > 10000) throw new Error("the event is not in the history after 10 s");
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    await ask(user);
    say(`answer after the event: ${((performance.now() - start) / 1000).toFixed(2)} s`);
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
}

byId("ask").addEventListener("submit", async (submit) => {
  submit.preventDefault();
  const user = byId("user").value.trim();
  try {
    say("asking");
    const numEvents = await ask(user);
    say(`${whole.format(numEvents)} events known`);
  } catch (error) {
    say(error.message, true);
  }
});
byId("chart").addEventListener("mousemove", showPoint);
byId("chart").addEventListener("mouseleave", hidePoint);
addEventListener("resize", showCurve);
poll();
const linked = new URLSearchParams(location.search).get("user");
if (linked) {
  byId("user").value = linked;
  byId("ask").requestSubmit();
}
