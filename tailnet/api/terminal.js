// A terminal on an agent's machine: xterm.js at one end of a websocket, the agent's port 2 at the other.  Its id stands in
// the page's address, so that a reload, or a connection that comes back, finds it again with what it showed.
// Served at /terminal.js (page_files.py); the page is terminal_page.py.
"use strict";

const FIRST_WAIT = 1000, LONGEST_WAIT = 30000; // ms until a lost connection is tried again
const MAX_KEYS = 65536; // of one message: what is pasted goes in pieces
const SCROLL_BACK = 10000; // lines

const place = document.getElementById("terminal");
const note = document.getElementById("note");
const again = document.getElementById("again");

// xterm.js makes style elements, and sets style attributes.  The policy of this page wants the former to carry its nonce,
// and forbids the latter as text; to set the same properties one by one is allowed.
const nonce = place.dataset.nonce;
const createElement = Document.prototype.createElement;
Document.prototype.createElement = function (name, options) {
  const element = createElement.call(this, name, options);
  if (String(name).toLowerCase() === "style") element.nonce = nonce;
  return element;
};
const setAttribute = Element.prototype.setAttribute;
Element.prototype.setAttribute = function (name, value) {
  if (name === "style") this.style.cssText = value;
  else setAttribute.call(this, name, value);
};

const terminal = new Terminal({
  cursorBlink: true,
  scrollback: SCROLL_BACK,
  fontFamily: "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace",
  fontSize: 14,
});
const fit = new FitAddon.FitAddon();
let socket = null;
let wait = FIRST_WAIT;
let timer = 0;

function say(text, isOver) {
  if (note.textContent !== text) note.textContent = text;
  again.hidden = !isOver;
}

function terminalId() {
  const address = new URL(location.href);
  let id = address.searchParams.get("reconnect");
  if (!id) {
    id = newId();
    address.searchParams.set("reconnect", id);
    history.replaceState(null, "", address);
  }
  return id;
}

// crypto.randomUUID is there on pages with TLS alone.
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const digits = Array.from(bytes, (each) => each.toString(16).padStart(2, "0")).join("");
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

function send(data) {
  if (socket === null || socket.readyState !== WebSocket.OPEN) return;
  const { rows: height, cols: width } = terminal;
  let at = 0;
  do {
    let end = at + MAX_KEYS;
    if (end < data.length && /[\ud800-\udbff]/.test(data[end - 1])) end++; // both halves of a character together
    socket.send(new TextEncoder().encode(JSON.stringify({ data: data.slice(at, end), height, width })));
    at = end;
  } while (at < data.length);
}

function connect() {
  clearTimeout(timer);
  fit.fit();
  const url = new URL(place.dataset.socket, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.searchParams.set("reconnect", terminalId());
  url.searchParams.set("height", terminal.rows);
  url.searchParams.set("width", terminal.cols);
  for (const name of ["container", "container_user", "backend_type"]) {
    const value = new URL(location.href).searchParams.get(name);
    if (value) url.searchParams.set(name, value);
  }
  const mine = (socket = new WebSocket(url));
  mine.binaryType = "arraybuffer";
  let isNew = true;
  mine.onmessage = (event) => {
    if (isNew) {
      isNew = false;
      wait = FIRST_WAIT;
      say("Connected.");
      terminal.reset(); // what it showed before comes again
    }
    terminal.write(new Uint8Array(event.data));
  };
  mine.onclose = (event) => {
    if (mine !== socket) return;
    if (event.code === 1000) return say("The terminal ended.", true);
    if (event.code === 1008) return say("You may not be here any more: reload this page, you may have to sign in again.");
    say(`Not connected${event.reason ? ` (${event.reason})` : ""}; trying again. If it lasts, reload this page.`);
    timer = setTimeout(connect, wait * (0.5 + Math.random() / 2));
    wait = Math.min(2 * wait, LONGEST_WAIT);
  };
}

again.addEventListener("click", () => {
  const address = new URL(location.href);
  address.searchParams.delete("reconnect");
  history.replaceState(null, "", address);
  wait = FIRST_WAIT;
  say("Connecting.");
  connect();
  terminal.focus();
});

// Keys that a phone does not have.
for (const button of document.querySelectorAll("#keys button")) {
  button.addEventListener("click", () => {
    send(JSON.parse(`"${button.dataset.keys}"`));
    terminal.focus();
  });
}

terminal.loadAddon(fit);
terminal.open(place);
terminal.onData(send);
terminal.onResize(() => send(""));
new ResizeObserver(() => requestAnimationFrame(() => fit.fit())).observe(place);
window.addEventListener("online", () => {
  if (socket.readyState === WebSocket.CLOSED) connect();
});
connect();
terminal.focus();
