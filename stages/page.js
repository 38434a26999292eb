"use strict";

const $ = (id) => document.getElementById(id);
const PAINT = "#e53935";
const SIDE = 384; // of the canvas on the screen, about
let model;
let lastPoint; // of the brush
let running; // the AbortController of the generation under way

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

// The form

function makeField(field) {
  const label = document.createElement("label");
  label.append(field.name.replaceAll("_", " "));
  label.title = field.description;
  let input;
  if (field.choices) {
    input = document.createElement("select");
    input.append(...field.choices.map((choice) => new Option(choice, JSON.stringify(choice))));
  } else {
    input = document.createElement("input");
    input.type = "number";
    input.step = field.whole ? "1" : "any";
    input.required = !field.optional;
    if (field.optional) input.placeholder = "none";
  }
  input.id = `head-${field.name}`;
  label.append(input);
  return label;
}

function setHead(values) {
  for (const { name, choices } of model.head) {
    $(`head-${name}`).value = choices ? JSON.stringify(values[name]) : values[name] ?? "";
  }
}

function readNumber(id) {
  const text = $(id).value;
  return text === "" ? null : Number(text);
}

function readHead() {
  return Object.fromEntries(model.head.map(({ name, choices }) => {
    const id = `head-${name}`;
    return [name, choices ? JSON.parse($(id).value) : readNumber(id)];
  }));
}

function fillForm() {
  const takes = model.takes_prompts ? "prompts" : `${model.classes.length} classes`;
  $("about").textContent = `${takes}, ${model.image_size} x ${model.image_size} pixels, `
    + `${model.num_tokens} tokens, on ${model.device}`;
  const used = model.takes_prompts ? "prompt" : "label";
  for (const id of ["label", "prompt"]) {
    $(id).parentElement.hidden = $(id).disabled = id !== used; // what is disabled is not required
  }
  $("classes").append(...model.classes.map((entry) => {
    const option = document.createElement("option");
    option.value = entry.value;
    option.label = entry.text;
    return option;
  }));
  $("label").value = model.classes[0]?.value ?? "";
  $("label").addEventListener("focus", () => $("label").select());
  $("num_images").max = model.most_images;
  for (const name of ["seed", "guidance_scale", "num_steps", "reconstruction_steps"]) $(name).value = model[name] ?? "";
  $("num_steps").max = model.num_tokens;
  $("num_steps").disabled = model.fixed_steps;
  $("reconstruction_steps").disabled = !model.halves;
  $("guidance_scale").disabled = !model.guided;
  $("head").append(...model.head.map(makeField));
  $("mode").append(...model.modes.map((mode) => new Option(mode.name)));
  $("mode").addEventListener("change", () => setHead(model.modes[$("mode").selectedIndex].head));
  $("head").hidden = model.head.length === 0;
  setHead(model.modes[0].head);
  $("generate").disabled = false;
}

function readForm(withEdit) {
  return {
    label: model.takes_prompts ? null : $("label").value,
    prompt: model.takes_prompts ? $("prompt").value : null,
    num_images: readNumber("num_images"),
    seed: readNumber("seed"),
    guidance_scale: readNumber("guidance_scale"),
    num_steps: readNumber("num_steps"),
    reconstruction_steps: readNumber("reconstruction_steps"),
    head: readHead(),
    on_the_way: $("on_the_way").checked,
    image: withEdit ? $("original").toDataURL("image/png") : null,
    mask: withEdit ? $("mask").toDataURL("image/png") : null,
  };
}

// A generation

function showPicture(index, url) {
  const pictures = $("pictures");
  while (pictures.children.length <= index) {
    const picture = document.createElement("img");
    const scale = Math.max(1, Math.round(144 / model.image_size));
    picture.width = picture.height = model.image_size * scale;
    picture.alt = `image ${pictures.children.length}`;
    picture.addEventListener("click", () => chooseImage(picture));
    pictures.append(picture);
  }
  pictures.children[index].src = url;
}

function take(message, asked) {
  if (message.error !== undefined) {
    say(message.error, true);
    return;
  }
  if (message.images !== undefined) {
    $("progress").value = message.images / asked.num_images;
    say(`${message.images.toFixed(1)} of ${asked.num_images} images`);
    message.pictures?.forEach((url, place) => showPicture(message.indices[place], url));
    return;
  }
  message.pictures.forEach((url, index) => showPicture(index, url));
  $("progress").value = 1;
  const warnings = message.warnings.map((warning) => `\n${warning}`).join("");
  say(`${message.seconds_per_image} s per image, ${message.seconds} s for ${asked.num_images}${warnings}`);
}

async function readLines(body, onLine) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.forEach(onLine);
  }
}

async function run(withEdit) {
  const asked = readForm(withEdit);
  running = new AbortController();
  setRunning(true);
  $("progress").value = 0;
  say("waiting for the model ...");
  try {
    const response = await fetch("generate", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
      signal: running.signal,
    });
    if (!response.ok) {
      say((await response.json()).error, true);
    } else {
      $("pictures").replaceChildren();
      await readLines(response.body, (line) => take(JSON.parse(line), asked));
    }
  } catch (error) {
    if (error.name === "AbortError") say("stopped");
    else say(`the server does not answer: ${error.message}`, true);
  }
  setRunning(false);
}

function setRunning(isRunning) {
  $("generate").disabled = isRunning;
  $("stop").disabled = !isRunning;
  $("redraw").disabled = isRunning || $("original").dataset.filled !== "yes";
}

// Editing

function chooseImage(source) {
  const canvas = $("original");
  const width = source.naturalWidth ?? source.width;
  const height = source.naturalHeight ?? source.height;
  const side = Math.min(width, height); // the middle of it, as large as can be
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, (width - side) / 2, (height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
  canvas.dataset.filled = "yes";
  $("canvases").hidden = false;
  for (const picture of $("pictures").children) picture.classList.toggle("chosen", picture === source);
  clearPaint();
  $("redraw").disabled = $("generate").disabled;
}

function clearPaint() {
  $("mask").getContext("2d").clearRect(0, 0, model.image_size, model.image_size);
}

function paint(event) {
  if (!(event.buttons & 1)) return;
  const mask = $("mask");
  const scale = model.image_size / mask.clientWidth;
  const brush = Number($("brush").value);
  const context = mask.getContext("2d");
  context.fillStyle = PAINT;
  const end = { x: event.offsetX * scale, y: event.offsetY * scale };
  const begin = event.type === "pointerdown" ? end : lastPoint;
  const count = Math.ceil(Math.max(Math.abs(end.x - begin.x), Math.abs(end.y - begin.y), 1));
  for (let step = 0; step <= count; step++) { // pixel by pixel, as the pointer may be fast
    const at = (from, to) => Math.round(from + ((to - from) * step) / count - brush / 2);
    context.fillRect(at(begin.x, end.x), at(begin.y, end.y), brush, brush);
  }
  lastPoint = end;
}

function makeEditor() {
  const size = model.image_size;
  const side = size * Math.max(1, Math.round(SIDE / size));
  for (const canvas of [$("original"), $("mask")]) {
    canvas.width = canvas.height = size;
    canvas.style.width = canvas.style.height = `${side}px`;
  }
  $("brush").max = Math.max(2, size / 2);
  $("brush").value = Math.max(1, Math.round(size / 8));
  $("mask").addEventListener("pointerdown", (event) => {
    $("mask").setPointerCapture(event.pointerId);
    paint(event);
  });
  $("mask").addEventListener("pointermove", paint);
  $("clear").addEventListener("click", clearPaint);
  $("file").addEventListener("change", async () => {
    const file = $("file").files[0];
    if (!file) return;
    try {
      chooseImage(await createImageBitmap(file));
    } catch {
      say(`${file.name} is no image that this browser can open`, true);
    }
  });
  $("editor").hidden = !model.editable;
}

async function start() {
  const response = await fetch("model");
  model = await response.json();
  fillForm();
  makeEditor();
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    run(event.submitter?.id === "redraw");
  });
  $("stop").addEventListener("click", () => running?.abort());
}

start().catch((error) => say(`the server does not answer: ${error.message}`, true));
