// Keeps a page up to date: the server sends parts of it as server-sent events, and this puts them in their places.
// Without it pages are whole, and as old as the reader's last reload.  Served at /live.js (live_script.py).
"use strict";

const MAX_LINES = 2000; // of a log; the oldest go
const FIRST_WAIT = 2000, LONGEST_WAIT = 60000; // ms until a connection is tried again that the browser gave up

const note = document.getElementById("live");
const skew = note ? Date.parse(note.dataset.now) - Date.now() : 0; // the server's clock is the one that counts
let lastId = note ? note.dataset.after : "0";
let wait = FIRST_WAIT;

function say(text) {
  if (note.textContent !== text) note.textContent = text;
}

function follow() {
  const url = new URL(note.dataset.source, location.href);
  url.searchParams.set("after", lastId);
  const source = new EventSource(url);
  source.onopen = () => {
    wait = FIRST_WAIT;
    say("Live.");
  };
  source.addEventListener("data", (event) => {
    lastId = event.lastEventId || lastId;
    const change = JSON.parse(event.data);
    for (const [id, html] of Object.entries(change.replace || {})) replace(id, html);
    for (const [id, html] of Object.entries(change.append || {})) append(id, html);
    tell();
  });
  source.onerror = (event) => {
    const why = event.data ? JSON.parse(event.data) : null; // the server's last words
    say(why ? `${why.message} ${why.detail || ""}` : "Not live now; trying again.");
    if (source.readyState !== EventSource.CLOSED) return; // the browser comes back by itself
    say("Not live any more: reload this page, you may have to sign in again.");
    setTimeout(follow, wait);
    wait = Math.min(2 * wait, LONGEST_WAIT);
  };
}

// Whoever goes through a page by keyboard stays where he is.
function replace(id, html) {
  const place = document.getElementById(id);
  if (!place || place.innerHTML === html) return;
  const focused = place.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  place.innerHTML = html;
  if (focused) for (const link of place.querySelectorAll("a")) if (link.getAttribute("href") === focused) link.focus();
}

function append(id, html) {
  const place = document.getElementById(id);
  if (!place) return;
  const isAtEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
  place.insertAdjacentHTML("beforeend", html);
  while (place.childElementCount > MAX_LINES) place.firstElementChild.remove();
  if (isAtEnd) place.scrollTop = place.scrollHeight;
}

// "3 min ago" in place of a moment, which the mouse shows.
function tell() {
  for (const each of document.querySelectorAll("time")) {
    const seconds = Math.max(0, (Date.now() + skew - Date.parse(each.dateTime)) / 1000);
    const [count, unit] =
      seconds < 120 ? [seconds, "s"] : seconds < 7200 ? [seconds / 60, "min"]
      : seconds < 172800 ? [seconds / 3600, "h"] : [seconds / 86400, "days"];
    if (!each.title) each.title = each.textContent;
    each.textContent = `${Math.floor(count)} ${unit} ago`;
  }
}

if (note) {
  for (const log of document.querySelectorAll(".log")) log.scrollTop = log.scrollHeight;
  tell();
  setInterval(tell, 1000);
  follow();
}
