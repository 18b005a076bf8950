// The page: what the server says, drawn. One connection for all pictures, one for all messages.
// Nothing from outside is ever markup: every text goes in through textContent. Nothing old is ever shown as now.
"use strict";

const API = "api/v1"; // relative: the page may lie behind a proxy's prefix
const LEVELS = ["notice", "warn", "alarm"];
const SILENT = 6000; // ms without a word from the server: the connection is lost
const BROKEN = 1500; // ms after the browser said that it broke
const STALE = 3000; // ms without a picture of a camera that is watched
const KEPT = 400; // events in the list, at most

const $ = (id) => document.getElementById(id);
const cards = new Map(); // camera name -> card
const rows = new Map(); // event id -> row
const heard = { at: 0, brokenAt: 0, lostAt: 0, offset: 0, known: false }; // of the server; offset: its clock minus ours
let looking = null; // AbortController of the stream of pictures
let listening = null; // EventSource
let shown = null; // id of the event in the player
let sound = null; // AudioContext, while sound is on
let safe = []; // labels that harm nobody

// --- small things ----------------------------------------------------------------------------------------------------

function make(tag, fields = {}, ...children) {
  const it = document.createElement(tag);
  for (const [key, value] of Object.entries(fields)) {
    if (key === "text") it.textContent = value;
    else if (key === "class") it.className = value;
    else if (key.startsWith("on")) it.addEventListener(key.slice(2), value);
    else it.setAttribute(key, value);
  }
  it.append(...children);
  return it;
}

// Written only where it differs: a screen reader is not told the same thing again, and nothing is laid out anew
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function flag(element, key, value) {
  if (element.dataset[key] !== value) element.dataset[key] = value;
}

function clock(seconds) {
  const date = new Date(seconds * 1000);
  const today = date.toDateString() === new Date().toDateString();
  const second = today ? { second: "2-digit" } : {};
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...second, hourCycle: "h23" });
  return today ? time : `${date.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

function lasting(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s}\u00a0s`;
  if (s < 5400) return `${Math.round(s / 60)}\u00a0min`;
  return `${(s / 3600).toFixed(1)}\u00a0h`;
}

const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
const serverNow = () => Date.now() / 1000 + heard.offset;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const worst = (events) => LEVELS[Math.max(...events.map((event) => LEVELS.indexOf(event.level)))] || "";

function kept(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(`stillwatch-${key}`);
    localStorage.setItem(`stillwatch-${key}`, value);
  } catch { /* a browser that keeps nothing still shows everything */ }
  return null;
}

async function ask(path, body) {
  const how = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(API + path, how);
  const fields = answer.status === 204 ? {} : await answer.json().catch(() => ({}));
  if (answer.status === 401 && path !== "/login") askToken();
  if (!answer.ok) throw new Error(fields.error || `the server answered ${answer.status}`);
  return fields;
}

// --- cameras ---------------------------------------------------------------------------------------------------------

function bar(kind, label) {
  const fill = make("div", { class: "fill" });
  const value = make("output");
  const track = make("div", { class: "track", role: "meter", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "1" }, fill);
  const line = make("div", { class: `row ${kind}` }, make("span", { text: label }), track, value);
  const set = (share) => {
    const there = share !== null && share !== undefined;
    fill.style.width = there ? `${100 * share}%` : "0";
    track.setAttribute("aria-valuenow", there ? share.toFixed(2) : "0");
    track.setAttribute("aria-valuetext", there ? percent(share) : "unknown");
    write(value, there ? percent(share) : "–");
  };
  return { line, set };
}

// A signal of the driver's face on its scale, with this driver's usual marked
const FACE = { eyes: ["Eyes", 0, 0.45], mouth: ["Mouth", 0, 1], yaw: ["Head", -60, 60] };

function faceBar(key) {
  const [label, low, high] = FACE[key];
  const fill = make("div", { class: "fill" });
  const mark = make("i", { class: "mark", title: "this driver's usual" });
  const value = make("output");
  const track = make("div", { class: "track", role: "meter", "aria-label": label, "aria-valuemin": String(low), "aria-valuemax": String(high) }, fill, mark);
  const place = (x) => `${100 * Math.min(1, Math.max(0, (x - low) / (high - low)))}%`;
  const set = (x, usual) => {
    const there = x !== null && x !== undefined;
    const words = !there ? "–" : key === "yaw" ? `${Math.round(x)}°` : x.toFixed(2);
    fill.style.width = there ? place(x) : "0";
    mark.style.left = place(usual);
    track.setAttribute("aria-valuenow", there ? x : usual);
    track.setAttribute("aria-valuetext", there ? `${words}, usually ${key === "yaw" ? `${Math.round(usual)}°` : usual.toFixed(2)}` : "no face");
    write(value, words);
  };
  return { line: make("div", { class: "row face" }, make("span", { text: label }), track, value), set };
}

function drawFace(it, face) {
  it.face.hidden = !face;
  if (!face) return;
  for (const key of Object.keys(FACE)) {
    if (!it.faceRows.has(key)) {
      it.faceRows.set(key, faceBar(key));
      it.face.insertBefore(it.faceRows.get(key).line, it.face.lastElementChild);
    }
    it.faceRows.get(key).set(face[key], face.usual[key]);
  }
  write(it.learnt, face.eyes === null ? "No face" : face.learnt < 1 ? `Learning this driver: ${percent(face.learnt)}` : "This driver is learnt");
}

function card(name) {
  const canvas = make("canvas", { role: "img", "aria-label": `Picture of ${name}` });
  const pill = make("span", { class: "pill" });
  const pace = make("span", { class: "pace" });
  const strong = make("strong");
  const why = make("span");
  const over = make("div", { class: "notice-over", hidden: "" }, strong, why);
  const view = make("div", { class: "view" }, canvas, over, pill, pace);
  const now = make("p", { class: "now", hidden: "" });
  const topLabel = make("span", { class: "top-label" });
  const gauges = make("div");
  const bars = make("div", { class: "bars" });
  const learnt = make("span");
  const toggle = (key, text, title) => {
    const button = make("button", { type: "button", text, title, "aria-pressed": "false", onclick: () => {
      it[key] = !it[key];
      button.setAttribute("aria-pressed", String(it[key]));
      look();
    } });
    return button;
  };
  const points = toggle("points", "Points", "Draw the points of the face on the picture");
  const where = toggle("where", "Where", "Show on the picture where the evidence is");
  where.hidden = true;
  const face = make("div", { class: "faces", hidden: "" }, make("p", { class: "learnt" }, learnt, points));
  const about = make("div", { class: "about" }, make("div", { class: "head" }, make("h3", { text: name }), where, topLabel), gauges, face, bars);
  const root = make("article", { class: "camera", "aria-label": name, "data-condition": "starting", "data-fresh": "no" }, view, now, about);
  const it = {
    face, learnt, faceRows: new Map(), points: false, where: false, whereButton: where,
    name, root, canvas, view, pill, pace, over, strong, why, now, topLabel, gauges, bars,
    rows: new Map(), gauge: null, fields: null, picture: 0, pictureAt: 0, condition: "", began: 0,
  };
  return it;
}

function drawCameras(state) {
  const there = state.cameras.map((camera) => camera.name);
  const fresh = there.some((name) => !cards.has(name)) || [...cards.keys()].some((name) => !there.includes(name));
  if (fresh) {
    for (const [name, it] of cards) if (!there.includes(name)) { it.root.remove(); cards.delete(name); }
    for (const name of there) {
      if (!cards.has(name)) cards.set(name, card(name));
      $("cameras").append(cards.get(name).root);
    }
    $("cameras").dataset.count = there.length;
    choices(there);
    look();
  }
  for (const fields of state.cameras) drawCamera(cards.get(fields.name), fields);
  drawTrouble(state);
}

function drawCamera(it, fields) {
  if (it.condition !== fields.condition) [it.condition, it.began] = [fields.condition, serverNow()];
  it.fields = fields;
  if (fields.gauge_name && !it.gauge) {
    it.gauge = bar("gauge", capital(fields.gauge_name));
    it.gauges.append(it.gauge.line);
  }
  if (it.gauge) it.gauge.set(fields.gauge);
  drawFace(it, fields.face);
  it.whereButton.hidden = !fields.where;
  const p = fields.p || {};
  for (const label of Object.keys(p)) {
    if (it.rows.has(label)) continue;
    it.rows.set(label, bar(safe.includes(label) ? "safe" : "", label));
    it.bars.append(it.rows.get(label).line);
  }
  const first = Object.keys(p).reduce((best, label) => (best === null || p[label] > p[best] ? label : best), null);
  for (const [label, row] of it.rows) {
    row.set(p[label]);
    row.line.classList.toggle("first", label === first);
  }
  write(it.topLabel, first === null ? "" : first);
  it.bars.hidden = it.rows.size === 0;
  const level = worst(fields.open);
  flag(it.root, "level", level);
  const speaking = fields.open.filter((event) => event.level === level).at(-1);
  it.now.hidden = !speaking;
  write(it.now, speaking ? `${capital(speaking.level)}: ${speaking.words}` : "");
  freshen(it);
}

// What may be shown as live: connected, watched, and a picture of these seconds. Everything else is grey and says why
function freshen(it) {
  const fields = it.fields;
  if (!fields) return;
  const quiet = performance.now() - it.pictureAt;
  const patience = Math.max(STALE, fields.fps ? 3000 / fields.fps : 0);
  let condition = fields.condition;
  if (heard.lostAt) condition = "cut";
  else if (["watching", "damaged"].includes(condition) && (!it.picture || quiet > patience)) condition = "stale";
  const last = it.picture ? `Last picture ${clock(it.picture)}.` : "";
  const since = fields.since || it.began;
  const head = fields.says.split(": ")[0];
  const reason = fields.says.slice(head.length + 2);
  const says = {
    cut: ["No connection", `Stillwatch has not answered since ${clock(heard.lostAt)}. ${last}`],
    stale: it.picture ? ["No new picture", `since ${clock(it.picture)}`] : ["Waiting for a picture", ""],
    watching: ["", ""],
    starting: [head, reason],
    failed: [head, reason],
    ended: [head, it.picture ? last : ""],
  }[condition] || [head, `since ${clock(since)}${reason ? ` · ${reason}` : ""}. ${condition === "lost" ? last : ""}`];
  const live = condition === "watching" || condition === "damaged";
  flag(it.root, "condition", condition);
  flag(it.root, "fresh", live ? "yes" : "no");
  write(it.pill, condition !== "watching" ? says[0] : fields.armed === false ? "Disarmed" : fields.live === false ? "Playing" : "Live");
  write(it.strong, says[0]);
  write(it.why, says[1].trim());
  it.over.hidden = live;
  const age = fields.age_ms === null || fields.age_ms === undefined ? "" : ` · ${Math.round(fields.age_ms)} ms`;
  write(it.pace, live && fields.fps ? `${fields.fps.toFixed(0)} fps${age}` : "");
  it.pace.hidden = !it.pace.textContent;
  it.canvas.setAttribute("aria-label", condition === "watching" ? `Live picture of ${it.name}` : `${it.name}: ${says[0]}`);
}

function drawTrouble(state) {
  const waiting = state.waiting ? ` (${state.waiting} rows wait to be written)` : "";
  $("trouble").hidden = !state.trouble;
  write($("trouble"), state.trouble ? `${state.trouble}${waiting}` : "");
}

// --- pictures --------------------------------------------------------------------------------------------------------

// Multipart JPEGs of every camera in one answer: six connections are all that a browser has for a server
async function look() {
  if (looking) looking.abort();
  looking = null;
  if (document.hidden || !cards.size) return; // who does not look costs no encoding
  const mine = (looking = new AbortController());
  while (looking === mine) {
    try {
      const asked = [...cards.values()].map((it) => `camera=${encodeURIComponent(it.name)}${["points", "where"].filter((key) => it[key]).map((key) => `&${key}=${encodeURIComponent(it.name)}`).join("")}`).join("&");
      const answer = await fetch(`${API}/pictures?${asked}`, { signal: mine.signal });
      if (answer.status === 401) return askToken();
      if (answer.ok) await parts(answer.body.getReader());
    } catch { /* said by the message that the connection is lost */ }
    if (looking === mine) await new Promise((done) => setTimeout(done, 1000));
  }
}

async function parts(reader) {
  const text = new TextDecoder("latin1");
  let held = new Uint8Array(0);
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const joined = new Uint8Array(held.length + value.length);
    joined.set(held);
    joined.set(value, held.length);
    held = joined;
    for (;;) {
      const head = text.decode(held.subarray(0, 600));
      const end = head.indexOf("\r\n\r\n");
      const length = /content-length: (\d+)/i.exec(head.slice(0, end));
      if (end < 0 || !length) break;
      const stop = end + 4 + Number(length[1]);
      if (held.length < stop) break;
      const name = decodeURIComponent(/x-camera: (\S+)/i.exec(head)[1]);
      draw(name, new Blob([held.slice(end + 4, stop)], { type: "image/jpeg" }));
      held = held.slice(stop);
    }
  }
}

async function draw(name, jpeg) {
  const it = cards.get(name);
  const picture = await createImageBitmap(jpeg).catch(() => null);
  if (!it || !picture) return;
  const { canvas } = it;
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    [canvas.width, canvas.height] = [picture.width, picture.height];
    it.view.style.aspectRatio = Math.min(16 / 9, Math.max(4 / 3, picture.width / picture.height));
  }
  canvas.getContext("2d").drawImage(picture, 0, 0);
  drawZones(canvas, it.fields);
  picture.close();
  [it.picture, it.pictureAt] = [serverNow(), performance.now()];
  if (it.root.dataset.fresh === "no") freshen(it);
}

// What is not looked at lies under a veil: outside the crop, and inside each polygon
function drawZones(canvas, fields) {
  const { crop, ignore = [] } = fields || {};
  if (!crop && !ignore.length) return;
  const { width, height } = canvas;
  const brush = canvas.getContext("2d");
  const [left, top, right, bottom] = crop || [0, 0, 1, 1];
  const veil = new Path2D();
  veil.rect(0, 0, width, height);
  veil.rect(left * width, top * height, (right - left) * width, (bottom - top) * height);
  brush.fillStyle = "rgb(90 94 102 / 72%)";
  brush.fill(veil, "evenodd");
  for (const polygon of ignore) {
    const zone = new Path2D();
    for (const [x, y] of polygon) zone.lineTo(x * width, y * height);
    zone.closePath();
    brush.fill(zone, "evenodd"); // as the net's gray
    brush.stroke(zone);
  }
}

// --- messages --------------------------------------------------------------------------------------------------------

function listen() {
  if (listening) listening.close();
  const mine = (listening = new EventSource(`${API}/stream`));
  const on = (what, act) => mine.addEventListener(what, (message) => {
    hear();
    act(JSON.parse(message.data));
  });
  on("cameras", (state) => {
    heard.offset = state.now - Date.now() / 1000;
    drawCameras(state);
  });
  on("event", told);
  on("missed", () => list());
  on("still", () => {});
  on("camera", () => {});
  on("trouble", () => {});
  mine.onopen = () => { hear(); list(); };
  mine.onerror = () => {
    heard.brokenAt = heard.brokenAt || performance.now();
    if (mine.readyState !== EventSource.CLOSED || mine !== listening) return;
    ask("/status").catch(() => {}); // a login that ended closes the stream for good: this shows the form
    setTimeout(() => { if (mine === listening) listen(); }, 2000);
  };
}

function hear() {
  [heard.at, heard.brokenAt] = [performance.now(), 0];
  if (heard.known && !heard.lostAt) return;
  [heard.known, heard.lostAt] = [true, 0];
  flag($("link"), "link", "open");
  write($("link"), "Connected");
}

function tick() {
  const now = performance.now();
  const silent = now - heard.at > SILENT || (heard.brokenAt && now - heard.brokenAt > BROKEN);
  if (silent && heard.known && !heard.lostAt) {
    heard.lostAt = (Date.now() - now + heard.at) / 1000;
    flag($("link"), "link", "lost");
    write($("link"), `No connection since ${clock(heard.lostAt)}`);
  }
  if (silent && !$("login").open && now - (tick.tried || 0) > SILENT) {
    tick.tried = now;
    listen();
  }
  for (const it of cards.values()) freshen(it);
  for (const it of rows.values()) it.tick();
}

// --- events ----------------------------------------------------------------------------------------------------------

const wanted = (event) =>
  (!$("by-camera").value || event.camera === $("by-camera").value) &&
  (!$("by-level").value || LEVELS.indexOf(event.level) >= LEVELS.indexOf($("by-level").value)) &&
  (!$("by-new").checked || !event.acknowledged);

function query(more = {}) {
  const fields = { limit: 40, camera: $("by-camera").value, level: $("by-level").value, ...more };
  return new URLSearchParams(Object.entries(fields).filter(([, value]) => value !== "" && value !== undefined)).toString();
}

async function list() {
  const mine = (list.turn = (list.turn || 0) + 1);
  try {
    const found = await ask(`/events?${query()}`);
    if (mine !== list.turn) return;
    const there = new Set(found.events.map((event) => event.id));
    for (const [id, it] of rows) if (!there.has(id)) { it.root.remove(); rows.delete(id); }
    for (const event of found.events) put(event);
    $("older").hidden = !found.more;
    [list.failed, list.last] = ["", found.events.at(-1)?.id];
  } catch (error) {
    list.failed = error.message;
  }
  count();
}

async function older() {
  $("older").disabled = true;
  try {
    const found = await ask(`/events?${query({ before_id: list.last })}`);
    for (const event of found.events) put(event);
    $("older").hidden = !found.more;
    list.last = found.events.at(-1)?.id ?? list.last;
  } catch (error) {
    aloud(error.message);
  }
  $("older").disabled = false;
  count();
}

// A message about an event: it opened, rose, ended, was marked, or its picture or clip is there now
function told(message) {
  const it = rows.get(message.id);
  if (message.marks) {
    if (it) put({ ...it.event, ...message.marks });
    return count();
  }
  if (message.event) {
    const known = it ? it.event : { clip: null, thumbnail: null, acknowledged: false, verdict: null };
    const event = { ...known, ...message.event };
    if (event.state !== "closed" && LEVELS.indexOf(event.level) > LEVELS.indexOf(it ? it.event.level : "")) alarmed(event);
    if (it || wanted(event)) put(event);
    count();
  }
  if (!message.event || message.event.state === "opened") again(message.id, 3);
}

// Rows are written a moment after they are told of
async function again(id, times) {
  await new Promise((done) => setTimeout(done, 700));
  try {
    const event = await ask(`/events/${encodeURIComponent(id)}`);
    if (rows.has(id) || wanted(event)) put(event);
    if (!event.thumbnail && times > 1) again(id, times - 1);
  } catch {
    if (times > 1) again(id, times - 1);
  }
  count();
}

function put(event) {
  let it = rows.get(event.id);
  if (!it) {
    it = eventRow(event);
    rows.set(event.id, it);
    const after = [...$("list").children].find((row) => row.opened < event.opened);
    $("list").insertBefore(it.root, after || null);
    while (rows.size > KEPT) forget($("list").lastElementChild);
  }
  it.set(event);
  if (shown === event.id) drawPlayer(event);
}

function forget(root) {
  rows.delete(root.event);
  root.remove();
}

function eventRow(first) {
  const thumb = make("button", { class: "thumb", type: "button", onclick: () => play(it.event.id) });
  const level = make("span", { class: "level" });
  const camera = make("span");
  const time = make("time");
  const words = make("p", { class: "words" });
  const how = make("span");
  const acts = make("div", { class: "acts" });
  const root = make("li", { class: "event" },
    thumb, make("div", {}, make("div", { class: "what" }, level, camera, how, time), words, acts));
  [root.opened, root.event] = [first.opened, first.id];
  const it = { root, event: first, buttons: "" };
  it.tick = () => {
    const { event } = it;
    const going = event.state !== "closed";
    how.classList.toggle("going", going);
    write(how, going ? `now, ${lasting(serverNow() - event.start)}` : lasting((event.end ?? event.updated) - event.start));
  };
  it.set = (event) => {
    it.event = event;
    flag(root, "level", event.level);
    flag(root, "done", event.acknowledged || event.verdict ? "yes" : "no");
    flag(thumb, "clip", event.clip ? "yes" : "no");
    thumb.setAttribute("aria-label", `${event.clip ? "Play" : "Show"}: ${event.words}, ${event.camera}, ${clock(event.opened)}`);
    const picture = thumb.querySelector("img");
    if (event.thumbnail && !picture) {
      thumb.replaceChildren(make("img", { src: event.thumbnail, alt: "", loading: "lazy", onerror: () => thumb.replaceChildren("no picture") }));
    } else if (!event.thumbnail && !thumb.childNodes.length) thumb.append(event.kind === "camera" ? "camera" : "no picture");
    write(level, event.level);
    write(camera, event.camera);
    write(time, clock(event.opened));
    time.dateTime = new Date(event.opened * 1000).toISOString();
    write(words, event.words);
    actions(acts, event, it);
    it.tick();
  };
  return it;
}

// The buttons of an event, rebuilt only when they change, with the focus where it was
function actions(place, event, memory) {
  const wants = `${event.acknowledged} ${event.verdict} ${memory.note || ""}`;
  if (memory.buttons === wants) return;
  const focused = memory.buttons && place.contains(document.activeElement);
  memory.buttons = wants;
  const act = (text, marks, label) => make("button", {
    type: "button", text, "aria-label": `${label}: ${event.words}, ${event.camera}`, onclick: () => mark(event.id, marks, place),
  });
  const done = { false: "False alarm", true: "Confirmed" }[event.verdict] || (event.acknowledged ? "Acknowledged" : "");
  place.replaceChildren(...(done
    ? [make("span", { class: "said", text: memory.note ? `${done} · ${memory.note}` : done }), act("Undo", { acknowledged: false, verdict: null }, "Undo")]
    : [act("Acknowledge", { acknowledged: true }, "Acknowledge"),
      act("False alarm", { acknowledged: true, verdict: "false" }, "Mark as a false alarm")]));
  if (focused) place.querySelector("button").focus();
}

async function mark(id, marks, place) {
  const buttons = [...place.querySelectorAll("button")];
  const at = document.activeElement;
  for (const button of buttons) button.disabled = true;
  try {
    const answer = await ask(`/events/${encodeURIComponent(id)}/mark`, marks);
    const it = rows.get(id);
    const note = answer.filed ? `${answer.filed} pictures filed for training` : answer.words || "";
    if (it) it.note = marks.verdict ? note : "";
    put(answer.event);
    if (note) aloud(note);
  } catch (error) {
    aloud(`Not done: ${error.message}`);
    place.append(make("span", { text: `Not done: ${error.message}` }));
  }
  for (const button of buttons) button.disabled = false;
  if (at && !at.isConnected) place.querySelector("button")?.focus();
  count();
}

function count() {
  const hide = (it) => !wanted(it.event);
  for (const it of rows.values()) it.root.hidden = hide(it);
  const seen = [...rows.values()].filter((it) => !it.root.hidden);
  const fresh = [...rows.values()].filter((it) => !it.event.acknowledged && !it.event.verdict).length;
  write($("unseen"), fresh ? `${fresh} new` : "");
  write($("jump"), fresh ? `Events: ${fresh} new ↓` : "");
  $("jump").hidden = !fresh;
  document.title = fresh ? `(${fresh}) Stillwatch` : "Stillwatch";
  $("quiet").hidden = seen.length > 0;
  const filtered = $("by-camera").value || $("by-level").value || $("by-new").checked;
  write($("quiet"), list.failed || (filtered ? "No such events." : "Nothing has happened yet."));
}

function choices(names) {
  const select = $("by-camera");
  const chosen = select.value;
  select.replaceChildren(make("option", { value: "", text: "all" }), ...names.map((name) => make("option", { value: name, text: name })));
  select.value = names.includes(chosen) ? chosen : "";
}

// --- the player ------------------------------------------------------------------------------------------------------

const acting = { buttons: "" };

function play(id) {
  shown = id;
  play.source = undefined;
  drawPlayer(rows.get(id).event);
  $("player").showModal();
}

function drawPlayer(event) {
  $("player").dataset.level = event.level;
  write($("player-words"), event.words);
  const source = event.clip || event.thumbnail || "";
  if (play.source !== source) {
    play.source = source;
    $("player-screen").replaceChildren(screenOf(event));
  }
  const end = event.state === "closed" ? `lasted ${lasting((event.end ?? event.updated) - event.start)}` : "goes on";
  const label = event.label ? ` · ${event.label}` : "";
  write($("player-facts"), `${capital(event.level)} · ${event.camera} · ${clock(event.opened)} · ${end}${label} · peak ${percent(event.peak)}`);
  [acting.buttons, acting.note] = [acting.id === event.id ? acting.buttons : "", rows.get(event.id)?.note];
  acting.id = event.id;
  actions($("player-acts"), event, acting);
}

function screenOf(event) {
  if (event.clip) {
    const failed = () => $("player-screen").replaceChildren(make("p", { text: "The clip cannot be played here. " },
      make("a", { href: event.clip, download: `${event.id}.mp4`, text: "Download it" })));
    return make("video", { src: event.clip, controls: "", autoplay: "", playsinline: "", "aria-label": `Clip: ${event.words}`, onerror: failed });
  }
  if (event.thumbnail) return make("img", { src: event.thumbnail, alt: `Picture at ${clock(event.opened)}` });
  return make("p", { text: event.state === "closed" ? "There is no clip." : "The clip is there when the event has ended." });
}

function closed() {
  $("player-screen").replaceChildren(); // a clip behind a closed door must not go on
  shown = null;
  acting.id = null;
}

// --- sound, speech, theme, login -------------------------------------------------------------------------------------

function alarmed(event) {
  aloud(`${event.level}: ${event.words}, ${event.camera}`);
  if (event.level === "alarm") chime();
}

function aloud(text) {
  $("aloud").textContent = text;
}

function chime() {
  if (!sound || sound.state !== "running") return;
  [[0, 660], [0.22, 880], [0.44, 660]].forEach(([at, hertz]) => {
    const tone = sound.createOscillator();
    const volume = sound.createGain();
    const start = sound.currentTime + at;
    tone.frequency.value = hertz;
    volume.gain.setValueAtTime(0, start);
    volume.gain.linearRampToValueAtTime(0.25, start + 0.02);
    volume.gain.exponentialRampToValueAtTime(0.001, start + 0.2);
    tone.connect(volume).connect(sound.destination);
    tone.start(start);
    tone.stop(start + 0.21);
  });
}

function setSound(on) {
  kept("sound", on ? "on" : "off");
  if (on && !sound) sound = new AudioContext();
  if (!on && sound) { sound.close(); sound = null; }
  drawSound();
  if (sound) sound.onstatechange = drawSound;
}

function drawSound() {
  const on = Boolean(sound);
  $("sound").setAttribute("aria-pressed", String(on));
  // Browsers let no page make a sound before somebody has touched it
  write($("sound"), !on ? "Sound off" : sound.state === "running" ? "Sound on" : "Sound on: click once");
}

const system = matchMedia("(prefers-color-scheme: light)");

function drawTheme() {
  const theme = kept("theme") || "system";
  document.documentElement.dataset.theme = theme === "system" ? (system.matches ? "light" : "dark") : theme;
  write($("theme"), `Theme: ${theme}`);
}

function nextTheme() {
  const themes = ["system", "dark", "light"];
  kept("theme", themes[(themes.indexOf(kept("theme") || "system") + 1) % 3]);
  drawTheme();
}

function askToken() {
  if ($("login").open) return;
  if (listening) listening.close();
  if (looking) { looking.abort(); looking = null; }
  write($("link"), "Not logged in");
  flag($("link"), "link", "opening");
  $("login").showModal();
}

async function logIn(submitted) {
  submitted.preventDefault();
  try {
    await ask("/login", { token: $("token").value });
    $("token").value = "";
    write($("login-why"), "");
    $("login").close();
    heard.known = false;
    begin();
  } catch (error) {
    write($("login-why"), capital(error.message));
    $("token").select();
  }
}

async function begin() {
  try {
    const status = await ask("/status");
    safe = status.safe;
    $("logout").hidden = !status.guarded;
  } catch { /* the stream below says so, or the form does */ }
  if (!$("login").open) {
    listen();
    look();
  }
}

$("sound").addEventListener("click", () => setSound(!sound));
$("theme").addEventListener("click", nextTheme);
$("logout").addEventListener("click", async () => { await ask("/logout", {}).catch(() => {}); location.reload(); });
$("filters").addEventListener("change", () => { count(); list(); });
$("filters").addEventListener("submit", (submitted) => submitted.preventDefault());
$("older").addEventListener("click", older);
$("player-close").addEventListener("click", () => $("player").close());
$("player").addEventListener("close", closed);
$("player").addEventListener("click", (click) => { if (click.target === $("player")) $("player").close(); });
$("login-form").addEventListener("submit", logIn);
$("login").addEventListener("cancel", (cancel) => cancel.preventDefault());
document.addEventListener("visibilitychange", () => { tick(); look(); });
document.addEventListener("pointerdown", () => { if (sound && sound.state !== "running") sound.resume(); });
system.addEventListener("change", drawTheme);
drawTheme();
if (kept("sound") === "on") setSound(true);
setInterval(tick, 500);
begin();
