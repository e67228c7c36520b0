/**
 * A board of sticky notes that several people use at once: the page of the gateway's demo.
 *
 * Two parts: the board, which knows the connection to the gateway, and the page around it.
 * Everything that comes from other people is put on the page as text, never as markup.
 */

import { connect } from "/kraftek.js";

// --------------------------------------------------------------------- Board

/** What `kraftek.daemon.demo.notes` takes: the board's size, a note's text in characters, its colours. */
const WIDTH = 1600;
const HEIGHT = 800;
const TEXT_LIMIT = 500;
const COLOURS = ["yellow", "orange", "pink", "violet", "blue", "green"];
/** The side of a note, in the board's units; board.css has it too. */
const SIDE = 200;
/** How many sizes board.css has for the text of a note. */
const SIZES = 5;
/** What we do to a note: the parts of it that this sets, how it is told, and at most how often, in milliseconds. */
const CHANGES = {
  move: { parts: ["x", "y"], echo: "moved", pace: 50 },
  edit: { parts: ["text"], echo: "edited", pace: 250 },
  recolour: { parts: ["colour"], echo: "recoloured", pace: 0 },
  delete: { parts: [], echo: "deleted", pace: 0 },
};
/** Milliseconds that the service gets to tell our own change back, or the board; then we ask for the whole board. */
const ECHO_PATIENCE = 4_000;
/** Pixels of the pointer's way that make a drag of a press, and from the edge where a drag begins to scroll. */
const DRAG = 4;
const EDGE = 56;

const clamp = (value, most) => Math.round(Math.min(Math.max(value, 0), most));
const nameOf = (userId) => userId.replace(/^user_/, "");
const hash = (text) => [...text].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7);
const showHue = (element, userId) => element.style.setProperty("--hue", hash(nameOf(userId)));

/** Put a person's initials and colour on an element. */
function showFace(element, userId) {
  const words = nameOf(userId).split(/[\s_-]+/).filter(Boolean);
  element.textContent = words.slice(0, 2).map((word) => [...word][0].toUpperCase()).join("");
  showHue(element, userId);
}

/**
 * The keyboard of a toolbar, as ARIA has it: one stop for Tab, which is the button that had the focus last; the arrow
 * keys, Home and End lead to the others.
 */
function makeToolbar(toolbar) {
  const buttons = [...toolbar.querySelectorAll("button")];
  const stopAt = (button) => buttons.forEach((each) => (each.tabIndex = each === button ? 0 : -1));
  stopAt(buttons[0]);
  toolbar.addEventListener("focusin", ({ target }) => buttons.includes(target) && stopAt(target));
  toolbar.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(event.target);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    buttons.at(to % buttons.length).focus({ preventScroll: true });
    event.preventDefault();
  });
}

/** Calls at once, then at most every so many milliseconds, and always once more after the last `push()`. */
class Paced {
  #call;
  #pace;
  #timer = 0;
  #again = false;

  constructor(pace, call) {
    this.#pace = pace;
    this.#call = call;
  }

  get waiting() {
    return this.#again;
  }

  push() {
    this.#again = true;
    if (!this.#timer) this.flush();
  }

  flush() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (!this.#again) return;
    this.#again = false;
    this.#call();
    this.#timer = setTimeout(() => this.flush(), this.#pace);
  }
}

/**
 * One note: what the service keeps, and over it what we are doing to it.
 *
 * Our own doing is shown at once and stays until the last of it has come back from the service, so that the note
 * follows the pointer and neither our own echoes nor other people's changes make it jump. Then what is kept shows.
 */
class Note {
  #board;
  #kept;
  #ours = {};
  /** What we hold on to: a drag ("move"), a text being written or not sent yet ("edit"). */
  #held = new Set();
  #unheard = { move: 0, edit: 0, recolour: 0, delete: 0 };
  #senders = {};
  #text;
  #by;
  #input = null;
  #touched = 0;
  #fitted = null;

  constructor(board, kept) {
    this.#board = board;
    this.#kept = kept;
    this.element = document.getElementById("note").content.firstElementChild.cloneNode(true);
    this.element.dataset.id = kept.id;
    this.element.style.setProperty("--tilt", (hash(kept.id) / 359 - 0.5) * 3);
    this.#text = this.element.querySelector(".text");
    this.#by = this.element.querySelector(".by");
    this.dot = document.createElement("b");
    for (const [what, { pace }] of Object.entries(CHANGES)) {
      this.#senders[what] = new Paced(pace, () => this.#send(what));
    }
    this.#render();
  }

  get shown() {
    return { ...this.#kept, ...this.#ours };
  }

  get unheard() {
    return Object.values(this.#unheard).some(Boolean);
  }

  /** Change it: seen at once, told as soon as its pace allows. */
  change(what, parts = {}) {
    Object.assign(this.#ours, parts);
    this.#render();
    this.#senders[what].push();
  }

  hold(what) {
    this.#held.add(what);
    this.element.classList.toggle("moving", this.#held.has("move"));
  }

  release(what) {
    this.#senders[what].flush();
    this.#held.delete(what);
    this.element.classList.toggle("moving", this.#held.has("move"));
    this.#settle(what);
    this.#render();
  }

  get writing() {
    return this.#input !== null;
  }

  /** The service told a change of this note; `what` we did, when it was our doing. */
  heard(kept, what) {
    this.#kept = kept;
    if (what) this.#unheard[what] = Math.max(0, this.#unheard[what] - 1);
    for (const each of Object.keys(CHANGES)) this.#settle(each);
    this.#render();
  }

  /** The service told the whole board: what we still waited for will not come. But words are said again. */
  reopened(kept) {
    const { text } = this.#ours;
    for (const what of Object.keys(CHANGES)) this.#unheard[what] = 0;
    if (!this.#input) this.#held.delete("edit");
    this.heard(kept);
    if (text !== undefined && text !== kept.text) this.change("edit", { text });
  }

  /** There is a connection again, over which all that was missed comes. What we said last may have got lost. */
  resumed() {
    this.reopened(this.#kept);
  }

  write() {
    if (this.#input) return;
    const input = document.createElement("textarea");
    input.value = this.shown.text;
    input.maxLength = TEXT_LIMIT;
    input.setAttribute("aria-label", "Text of the note");
    input.addEventListener("input", () => {
      this.change("edit", { text: input.value });
      this.#fitText(input);
    });
    input.addEventListener("keydown", (event) => {
      const done = event.key === "Escape" || (event.key === "Enter" && (event.ctrlKey || event.metaKey));
      if (done) this.element.focus();
    });
    input.addEventListener("blur", () => this.#written());
    this.#input = input;
    this.hold("edit");
    this.#text.replaceWith(input);
    input.dataset.size = this.#text.dataset.size;
    input.focus({ preventScroll: true });
    input.setSelectionRange(input.value.length, input.value.length);
  }

  remove() {
    this.#board = null;
    this.element.remove();
    this.dot.remove();
  }

  #written() {
    if (!this.#board) return;
    const input = this.#input;
    this.#input = null;
    input.replaceWith(this.#text);
    this.#text.dataset.size = input.dataset.size;
    // Without a connection the text stays ours until there is one.
    if (this.#board.live) this.release("edit");
    else this.#render();
  }

  /** Show for a moment who is at it. */
  touchedBy(userId) {
    clearTimeout(this.#touched);
    this.element.dataset.touched = nameOf(userId);
    showHue(this.element, userId);
    this.#touched = setTimeout(() => delete this.element.dataset.touched, 1800);
  }

  #send(what) {
    if (!this.#board) return;
    const { id } = this.#kept;
    const parts = Object.fromEntries(CHANGES[what].parts.map((part) => [part, this.shown[part]]));
    if (this.#board.send(`stickyNotes:note:${what}`, { id, ...parts })) this.#unheard[what] += 1;
  }

  /** Let go of what we did once nothing of it is under way any more. */
  #settle(what) {
    if (!this.#unheard[what] && !this.#senders[what].waiting && !this.#held.has(what)) {
      for (const part of CHANGES[what].parts) delete this.#ours[part];
    }
  }

  #render() {
    const { x, y, text, colour, by, at } = this.shown;
    const { element, dot } = this;
    element.style.setProperty("--x", x);
    element.style.setProperty("--y", y);
    element.dataset.colour = colour;
    element.classList.toggle("unsent", !this.#board.live && this.#held.has("edit"));
    element.setAttribute("aria-label", text || "Empty note");
    this.#text.textContent = text;
    this.#fitText(this.#text);
    showFace(this.#by.firstElementChild, by);
    this.#by.lastElementChild.textContent = nameOf(by);
    this.#by.title = `Last changed by ${nameOf(by)}, ${new Date(at).toLocaleString()}`;
    dot.dataset.colour = colour;
    dot.style.setProperty("--x", x);
    dot.style.setProperty("--y", y);
  }

  /** The more there is to read, the smaller the letters: the largest size that shows all of it, or the smallest. */
  #fitText(element) {
    const text = element.value ?? element.textContent;
    if (this.#fitted === text || !element.isConnected) return;
    this.#fitted = text;
    for (let size = 1; size <= SIZES; size += 1) {
      element.dataset.size = size;
      if (element.scrollHeight <= element.clientHeight) return;
    }
  }
}

/** The notes of a room on the page, and what a hand or a keyboard does with them. */
class Board {
  live = false;
  #connection;
  #me = "";
  #notes = new Map();
  #looked = false;
  #opening = false;
  /** Nothing was missed while we were away, or what was missed comes by itself. */
  #recovered = false;
  /** Ends the room that is shown. */
  #leave = () => {};
  /** Called when the whole board is there, or will not come. */
  #fetched = () => {};
  #failed = () => {};
  #creating = 0;
  #highest = 0;
  #echoTimer = 0;
  #viewport = document.getElementById("viewport");
  #element = document.getElementById("board");
  #map = document.getElementById("map");
  #tools = document.getElementById("tools").content.firstElementChild;
  #drag = null;
  #scale = 1;

  /**
   * `told(who, what)` hears of every change, `complain(text)` of what failed, `waits(whether)` of a silent service.
   */
  constructor(connection, { told, complain, waits }) {
    this.#connection = connection;
    this.told = told;
    this.complain = complain;
    this.waits = waits;

    connection.on("state", ({ state }) => {
      this.live = state === "ready";
      this.#element.setAttribute("aria-busy", "true");
      this.#stopExpecting();
      if (this.live) this.#resume();
      else this.#failed();
    });
    connection.on("recovered", ({ roomId, recovered }) => {
      if (roomId) this.#recovered = recovered; // without a room it is about what the user is told
    });
    connection.on("stickyNotes:board:opened", ({ notes }) => {
      this.#opened(notes);
      this.#fetched();
    });
    connection.on("stickyNotes:note:created", (change) => this.#heard("created", change));
    for (const [what, { echo }] of Object.entries(CHANGES)) {
      connection.on(`stickyNotes:note:${echo}`, (change) => this.#heard(echo, change, what));
    }
    connection.on("stickyNotes:note:refused", ({ message }) => {
      this.complain(`That did not work: ${message}.`);
      this.#creating = 0;
      this.#open();
    });
    connection.on("error", ({ eventType, code, message }) => {
      if (!eventType?.startsWith("stickyNotes:")) return;
      if (code === "SERVICE_UNAVAILABLE") this.waits(true);
      else this.complain(message);
      this.#stopExpecting();
      this.#expectEcho(1000 + Math.random() * 1000);
    });
    this.#takeHands();
    this.#takeKeys();
    new ResizeObserver(() => this.#fit()).observe(this.#viewport);
    this.#viewport.addEventListener("scroll", () => (this.#showWhere(), this.#keepTools()), { passive: true });
    this.#fit();
  }

  /** Send an event, or return false: nothing is kept for later, since later it may no longer be meant. */
  send(type, payload) {
    if (!this.live || !this.#connection.emit(type, payload)) return false;
    this.#expectEcho();
    return true;
  }

  /** Ask for a note in the middle of what is to be seen, or at a place of the board. */
  create(colour, at = this.#middle()) {
    const place = { x: clamp(at.x - SIDE / 2, WIDTH - SIDE), y: clamp(at.y - SIDE / 2, HEIGHT - SIDE) };
    if (this.send("stickyNotes:note:create", { ...place, text: "", colour })) this.#creating += 1;
    else this.#explain();
  }

  /** Show this room. The whole board is fetched when it is entered, and later only if something was missed for good. */
  show(roomId) {
    this.#leave();
    this.#recovered = false;
    this.#leave = this.#connection.snapshot(roomId, () => {
      this.#open();
      return new Promise((fetched, failed) => ([this.#fetched, this.#failed] = [fetched, failed]));
    });
  }

  // What the service says

  #resume() {
    this.#me = this.#connection.userId;
    if (!this.#recovered) return;
    this.#element.setAttribute("aria-busy", "false");
    for (const note of this.#notes.values()) note.resumed();
  }

  #open() {
    this.#opening = this.send("stickyNotes:board:open", {});
  }

  #opened(kept) {
    this.#opening = false;
    this.#element.setAttribute("aria-busy", "false");
    this.waits(false);
    const left = new Set(this.#notes.keys());
    for (const note of kept.sort((one, other) => one.at - other.at)) {
      if (!left.delete(note.id)) this.#add(note);
      this.#notes.get(note.id).reopened(note);
      this.#raise(this.#notes.get(note.id));
    }
    for (const id of left) this.#remove(id);
    this.#showEmpty();
    this.#expectNoMore();
    if (this.#looked) return;
    // A window that cannot show the whole board begins where something was done last.
    this.#looked = true;
    const latest = kept.length ? this.#notes.get(kept.at(-1).id).element : this.#element;
    latest.scrollIntoView({ block: "nearest", inline: "center", behavior: "instant" });
  }

  #heard(echo, { userId, note }, what) {
    const mine = userId === this.#me;
    this.told(userId, echo);
    if (echo === "deleted") {
      if (this.#notes.get(note.id)?.writing) this.complain(`${nameOf(userId)} deleted the note you were writing.`);
      this.#remove(note.id);
    } else {
      if (!this.#notes.has(note.id)) this.#add(note);
      const known = this.#notes.get(note.id);
      known.heard(note, mine && what);
      this.#raise(known);
      this.#keepTools();
      if (!mine) known.touchedBy(userId);
      if (mine && echo === "created" && this.#creating) {
        this.#creating -= 1;
        known.element.focus();
        known.write();
      }
    }
    this.#showEmpty();
    this.#expectNoMore();
  }

  /** Whatever gets lost on the way, the board shows what the service keeps a few seconds later. */
  #expectEcho(patience = ECHO_PATIENCE) {
    this.#echoTimer ||= setTimeout(() => {
      this.#stopExpecting();
      this.#open();
    }, patience);
  }

  #expectNoMore() {
    if (!this.#opening && !this.#creating && ![...this.#notes.values()].some((each) => each.unheard)) {
      this.#stopExpecting();
    }
  }

  #stopExpecting() {
    clearTimeout(this.#echoTimer);
    this.#echoTimer = 0;
    this.#creating = 0;
  }

  #add(kept) {
    const note = new Note(this, kept);
    this.#notes.set(kept.id, note);
    this.#element.append(note.element);
    this.#map.append(note.dot);
  }

  #remove(id) {
    const note = this.#notes.get(id);
    if (!note) return;
    const focused = note.element.contains(document.activeElement);
    if (this.#drag?.note === note) this.#drag = null;
    this.#notes.delete(id);
    note.remove();
    if (focused) (this.#element.querySelector(".note") ?? document.querySelector("#pads button")).focus();
  }

  #raise(note) {
    note.element.style.zIndex = this.#highest += 1;
  }

  #showEmpty() {
    document.getElementById("empty").hidden = this.#notes.size > 0;
  }

  #explain() {
    this.complain("Not connected: the board can be read, not changed.");
  }

  // What hands and keyboards do

  #noteOf(target) {
    return this.#notes.get(target.closest?.(".note")?.dataset.id);
  }

  #takeHands() {
    const board = this.#element;
    board.addEventListener("pointerdown", (event) => {
      const note = this.#noteOf(event.target);
      if (!note || event.button || event.target.closest("textarea, button")) return;
      // preventDefault: the browser would give the focus away again when this was a touch.
      event.preventDefault();
      const again = note.element === document.activeElement;
      note.element.focus({ preventScroll: true });
      const { x, y } = note.shown;
      const at = this.#toBoard(event);
      this.#drag = { note, again, pointer: event, start: event, dx: at.x - x, dy: at.y - y, moving: false };
      note.element.setPointerCapture(event.pointerId);
    });
    board.addEventListener("pointermove", (event) => {
      if (event.pointerId !== this.#drag?.start.pointerId) return;
      this.#drag.pointer = event;
      const { note, start, moving } = this.#drag;
      if (moving || Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY) < DRAG) return;
      if (!this.live) {
        this.#drag = null;
        this.#explain();
        return;
      }
      this.#drag.moving = true;
      note.hold("move");
      board.classList.add("dragging");
      requestAnimationFrame(() => this.#follow());
    });
    for (const end of ["pointerup", "pointercancel"]) {
      board.addEventListener(end, (event) => {
        if (event.pointerId !== this.#drag?.start.pointerId) return;
        const { note, again, moving } = this.#drag;
        if (moving) {
          this.#drag.pointer = event;
          this.#moveAlong();
          note.release("move");
          this.#placeTools(note);
        } else if (end === "pointerup") {
          if (again) this.#write(note);
          this.#bringIntoView(note);
        }
        this.#drag = null;
        board.classList.remove("dragging");
      });
    }
    board.addEventListener("dblclick", (event) => {
      if (event.target === board) this.create(COLOURS[0], this.#toBoard(event));
    });

    for (const [index, colour] of COLOURS.entries()) {
      const swatch = document.createElement("button");
      swatch.type = "button";
      swatch.className = "swatch";
      swatch.dataset.colour = colour;
      swatch.title = `${colour} (${index + 1})`;
      swatch.setAttribute("aria-label", colour);
      this.#tools.querySelector(".swatches").append(swatch);
    }
    makeToolbar(this.#tools);
    this.#tools.addEventListener("click", ({ target }) => {
      const note = this.#noteOf(target);
      const { do: action, colour } = target.closest("button")?.dataset ?? {};
      if (colour) this.#change(note, "recolour", { colour });
      if (action === "edit") this.#write(note);
      if (action === "delete") this.#change(note, "delete");
    });
    board.addEventListener("focusin", ({ target, relatedTarget }) => {
      const note = this.#noteOf(target);
      // Within a note nothing moves: a tool that did while it was pressed would not be clicked.
      if (note?.element.contains(relatedTarget)) return;
      if (note && this.#tools.parentElement !== note.element) {
        note.element.append(this.#tools);
        this.#raise(note);
      }
      if (note) this.#placeTools(note);
    });

    const look = (event) => {
      const box = this.#map.getBoundingClientRect();
      const area = this.#element.getBoundingClientRect();
      const view = this.#viewport;
      view.scrollLeft = ((event.clientX - box.left) / box.width) * area.width - view.clientWidth / 2;
      view.scrollTop = ((event.clientY - box.top) / box.height) * area.height - view.clientHeight / 2;
    };
    this.#map.addEventListener("pointerdown", (event) => {
      this.#map.setPointerCapture(event.pointerId);
      look(event);
    });
    this.#map.addEventListener("pointermove", (event) => {
      if (this.#map.hasPointerCapture(event.pointerId)) look(event);
    });
  }

  #takeKeys() {
    this.#element.addEventListener("keydown", (event) => {
      const note = this.#noteOf(event.target);
      if (!note || event.target.closest("textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
      const onTool = event.target !== note.element;
      const step = event.shiftKey ? 50 : 10;
      const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
      const colour = COLOURS[Number(event.key) - 1];
      if (colour) this.#change(note, "recolour", { colour });
      else if (event.key === "Escape") onTool ? note.element.focus() : note.element.blur();
      else if (onTool) return;
      else if (way) {
        const { x, y } = note.shown;
        this.#change(note, "move", { x: clamp(x + way[0], WIDTH - SIDE), y: clamp(y + way[1], HEIGHT - SIDE) });
        this.#bringIntoView(note);
      } else if (event.key === "Enter" || event.key === "F2") this.#write(note);
      else if (event.key === "Delete" || event.key === "Backspace") this.#change(note, "delete");
      else return;
      event.preventDefault();
    });
  }

  #change(note, what, parts) {
    if (this.live) note.change(what, parts);
    else this.#explain();
  }

  #write(note) {
    if (this.live) note.write();
    else this.#explain();
  }

  /** Once per frame of a drag: scroll where the pointer is at an edge, and bring the note under the pointer. */
  #follow() {
    if (!this.#drag) return;
    const { clientX, clientY } = this.#drag.pointer;
    const box = this.#viewport.getBoundingClientRect();
    const push = (near, far) => (near < EDGE ? near - EDGE : far < EDGE ? EDGE - far : 0) / 4;
    this.#viewport.scrollBy({
      left: push(clientX - box.left, box.right - clientX),
      top: push(clientY - box.top, box.bottom - clientY),
      behavior: "instant",
    });
    this.#moveAlong();
    requestAnimationFrame(() => this.#follow());
  }

  #moveAlong() {
    const { note, pointer, dx, dy } = this.#drag;
    const at = this.#toBoard(pointer);
    const { x, y } = note.shown;
    const to = { x: clamp(at.x - dx, WIDTH - SIDE), y: clamp(at.y - dy, HEIGHT - SIDE) };
    if (to.x !== x || to.y !== y) note.change("move", to);
  }

  // Where things are

  #toBoard({ clientX, clientY }) {
    const box = this.#element.getBoundingClientRect();
    return { x: (clientX - box.left) / this.#scale, y: (clientY - box.top) / this.#scale };
  }

  #middle() {
    const box = this.#viewport.getBoundingClientRect();
    const anywhere = () => (Math.random() - 0.5) * SIDE;
    const { x, y } = this.#toBoard({ clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 });
    return { x: x + anywhere(), y: y + anywhere() };
  }

  /** The whole board if notes stay legible so; else as tall as the window, to be scrolled sideways. */
  #fit() {
    const style = getComputedStyle(this.#viewport);
    const width = this.#viewport.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const height = this.#viewport.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
    const whole = Math.min(width / WIDTH, height / HEIGHT);
    this.#scale = whole >= 0.7 ? whole : Math.min(Math.max(height / HEIGHT, 0.7), 0.9);
    this.#element.style.setProperty("--u", `${this.#scale}px`);
    this.#showWhere();
    this.#keepTools();
  }

  #showWhere() {
    const { scrollLeft, scrollTop, clientWidth, clientHeight, scrollWidth, scrollHeight } = this.#viewport;
    this.#map.hidden = scrollWidth <= clientWidth + 1 && scrollHeight <= clientHeight + 1;
    const frame = this.#map.firstElementChild.style;
    frame.setProperty("--left", scrollLeft / scrollWidth);
    frame.setProperty("--top", scrollTop / scrollHeight);
    frame.setProperty("--width", clientWidth / scrollWidth);
    frame.setProperty("--height", clientHeight / scrollHeight);
  }

  #bringIntoView(note) {
    note.element.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
    this.#placeTools(note);
  }

  /**
   * Over the note or under it, and shifted to where the window shows all of them. Where they will be, that is: a note that
   * has just come is still growing, and its tools with it.
   */
  #placeTools(note) {
    const { left, top } = this.#element.getBoundingClientRect();
    const { x, y } = note.shown;
    const [middle, half] = [left + (x + SIDE / 2) * this.#scale, this.#tools.offsetWidth / 2];
    const shift = Math.max(0, 8 + half - middle) + Math.min(0, this.#viewport.clientWidth - 8 - half - middle);
    note.element.dataset.tools = top + y * this.#scale < 120 ? "below" : "above";
    this.#tools.style.setProperty("--shift", shift);
  }

  /** Where the board has moved under them. */
  #keepTools() {
    const note = this.#noteOf(this.#tools);
    if (note?.element.contains(document.activeElement)) this.#placeTools(note);
  }
}

// ---------------------------------------------------------------------- Page

/** How many events the drawer shows, and how many faces there is room for. */
const EVENTS = 50;
const FACES = 4;
const DONE = {
  created: "put up a note", moved: "moved a note", edited: "wrote a note", recoloured: "recoloured a note",
  deleted: "took a note down",
};
const byId = (id) => document.getElementById(id);
const pick = (list) => list[Math.floor(Math.random() * list.length)];

function randomName() {
  const how = ["Amber", "Brisk", "Calm", "Daring", "Gentle", "Lucky", "Mellow", "Nimble", "Quiet", "Sunny", "Witty"];
  const who = ["Badger", "Crane", "Dolphin", "Fox", "Hare", "Lynx", "Magpie", "Otter", "Panda", "Seal", "Wren"];
  return `${pick(how)} ${pick(who)}`;
}

/** Who we are, in this window alone, and in which room, which the address says. */
const identity = {
  get name() {
    const name = sessionStorage.getItem("name") ?? randomName();
    sessionStorage.setItem("name", name);
    return name;
  },
  set name(name) {
    sessionStorage.setItem("name", name);
  },
  get room() {
    return new URLSearchParams(location.search).get("room")?.trim() || "demo";
  },
  set room(room) {
    history.replaceState(null, "", `?${new URLSearchParams({ room })}`);
  },
};

function showIdentity() {
  byId("my-name").textContent = identity.name;
  showFace(byId("my-face"), identity.name);
  byId("room-name").textContent = identity.room;
  for (const link of document.querySelectorAll(".second-window")) link.href = `?${new URLSearchParams({ room: identity.room })}`;
  document.title = `${identity.room} · Sticky notes`;
}

/** Asks for a name and a room, and goes there. */
function askIdentity() {
  byId("who-name").value = identity.name;
  byId("who-room").value = identity.room;
  byId("who").returnValue = "";
  byId("who").showModal();
}

/** Says something in passing. */
let toastTimer = 0;
function toast(text) {
  const element = byId("toast");
  clearTimeout(toastTimer);
  element.textContent = text;
  element.hidden = false;
  toastTimer = setTimeout(() => (element.hidden = true), 4500);
}

/** Says what stands in the way, with what can be done about it; with no text, that nothing does. */
let noticeTimer = 0;
function notice(text = "", action = "", act = null, wait = 0) {
  clearInterval(noticeTimer);
  byId("notice").hidden = !text;
  byId("notice-text").textContent = text;
  byId("notice-action").hidden = !action;
  byId("notice-action").textContent = action;
  byId("notice-action").onclick = act;
  const until = Date.now() + wait;
  const count = () => {
    const seconds = Math.ceil((until - Date.now()) / 1000);
    byId("notice-wait").textContent = seconds > 0 ? `Next try in ${seconds} s.` : "";
  };
  count();
  if (wait) noticeTimer = setInterval(count, 250);
}

const STATES = { closed: "Offline", connecting: "Connecting", ready: "Live", waiting: "Reconnecting" };

function showState({ state, wait, code, reason, error }) {
  const why = error?.message ?? reason;
  document.body.dataset.state = state;
  byId("status").textContent = STATES[state];
  if (state === "ready") {
    notice();
  } else if (state === "waiting") {
    notice("The connection was lost.", "Try now", () => connection.open(), wait);
  } else if (state === "closed" && code === 4409) {
    notice(`${identity.name} is on this board in another window.`, "Use this window", () => connection.open());
  } else if (state === "closed" && code === 4401) {
    notice(`You could not be let in as ${identity.name}. ${why}`, "Another name", askIdentity);
  } else if (state === "closed") {
    notice(`The gateway closed the connection (${code}). ${why}`, "Connect again", () => connection.open());
  }
}

/** Who is in the room, ourselves first. In a full one the gateway tells some of them, and how many there are. */
function showPeople({ users, count }) {
  const ids = users.map(({ userId }) => userId);
  const others = ids.filter((userId) => userId !== connection.userId);
  const everybody = [...ids.filter((userId) => !others.includes(userId)), ...others.sort()];
  const face = (userId) => {
    const element = Object.assign(document.createElement("span"), { className: "face" });
    element.toggleAttribute("data-me", userId === connection.userId);
    showFace(element, userId);
    return element;
  };
  const names = everybody.map((userId) => {
    const row = document.createElement("li");
    const name = Object.assign(document.createElement("span"), { className: "name", textContent: nameOf(userId) });
    row.append(face(userId), name);
    if (userId === connection.userId) row.append(Object.assign(document.createElement("i"), { textContent: "you" }));
    return row;
  });
  const shown = everybody.slice(0, count > FACES ? FACES - 1 : FACES).map(face);
  const more = count - shown.length;
  if (more) shown.push(Object.assign(document.createElement("span"), { className: "face more", textContent: `+${more}` }));
  byId("people").hidden = !count;
  byId("people-faces").replaceChildren(...shown);
  byId("people-text").textContent = count === 1 ? "1 person here" : `${count} people here`;
  if (count > names.length) {
    names.push(Object.assign(document.createElement("li"), { className: "others", textContent: `and ${count - names.length} more` }));
  }
  byId("people-names").replaceChildren(...names);
}

let forgetPeople = () => {};
function meetPeople() {
  forgetPeople();
  forgetPeople = connection.presence(identity.room, showPeople);
}

/** The newest at the top; the steps of one drag or of one text share a line, one for each direction. */
function showFrame(sent, { type, payload }) {
  const list = byId("events-list");
  const about = payload?.note?.id ?? payload?.id ?? "";
  const key = `${sent} ${type} ${about}`;
  let row = about && [...list.children].slice(0, 8).find((recent) => recent.dataset.key === key);
  if (!row) {
    row = document.createElement("li");
    row.dataset.key = key;
    row.dataset.way = sent ? "out" : "in";
    row.dataset.count = 0;
    for (const part of ["way", "type", "count", "time", "payload"]) {
      row.append(Object.assign(document.createElement("span"), { className: part }));
    }
    list.prepend(row);
    while (list.childElementCount > EVENTS) list.lastElementChild.remove();
  }
  row.dataset.count = Number(row.dataset.count) + 1;
  const [way, name, count, time, text] = row.children;
  way.textContent = sent ? "sent" : "received";
  name.textContent = type;
  count.textContent = row.dataset.count > 1 ? `×${row.dataset.count}` : "";
  time.textContent = new Date().toLocaleTimeString([], { hour12: false });
  // A token is nobody's business, also not of whoever looks over the shoulder.
  const shown = payload?.token === undefined ? payload : { ...payload, token: "…" };
  text.textContent = JSON.stringify(shown ?? null).slice(0, 300);
}

function showLast(userId, what) {
  byId("last").hidden = false;
  showFace(byId("last").firstElementChild, userId);
  byId("last-text").textContent = `${nameOf(userId)} ${DONE[what]}`;
}

function showEvents(open) {
  byId("events").hidden = !open;
  byId("events-toggle").setAttribute("aria-expanded", String(open));
  (open ? byId("events-list") : byId("events-toggle")).focus();
}

const gateway = new URL("/", location.href);
gateway.protocol = location.protocol === "https:" ? "wss:" : "ws:";
/** Shows what is said on it. */
class ShownSocket extends WebSocket {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", ({ data }) => showFrame(false, JSON.parse(data)));
  }

  send(text) {
    super.send(text);
    showFrame(true, JSON.parse(text));
  }
}

const connection = connect(gateway.href, {
  token: () => ({ token: identity.name, roomId: identity.room }),
  cap: 15_000,
  WebSocket: ShownSocket,
});
connection.on("state", showState);
const board = new Board(connection, {
  told: showLast,
  complain: toast,
  waits: (waiting) => notice(waiting ? "The notes service does not answer. The board comes back with it." : ""),
});

for (const colour of COLOURS) {
  const pad = document.createElement("button");
  pad.type = "button";
  pad.className = "pad";
  pad.dataset.colour = colour;
  pad.title = `New ${colour} note`;
  pad.setAttribute("aria-label", pad.title);
  pad.addEventListener("click", () => board.create(colour));
  byId("pads").append(pad);
}
board.show(identity.room);
makeToolbar(byId("pads"));
byId("me").addEventListener("click", askIdentity);
byId("room").addEventListener("click", askIdentity);
byId("who").addEventListener("close", () => {
  const [name, room] = [byId("who-name").value.trim(), byId("who-room").value.trim()];
  if (byId("who").returnValue !== "go" || !name || !room) return;
  Object.assign(identity, { name, room });
  showIdentity();
  meetPeople();
  board.show(room);
  connection.open();
});
byId("events-toggle").addEventListener("click", () => showEvents(byId("events").hidden));
byId("events-close").addEventListener("click", () => showEvents(false));
document.addEventListener("keydown", (event) => {
  const { target, key, ctrlKey, metaKey, altKey } = event;
  if (key.toLowerCase() !== "e" || ctrlKey || metaKey || altKey || target.closest("input, textarea, dialog")) return;
  showEvents(byId("events").hidden);
  event.preventDefault();
});
byId("events").addEventListener("keydown", ({ key }) => key === "Escape" && showEvents(false));

showIdentity();
showState({ state: connection.state });
meetPeople();
