"use strict";
const form = document.getElementById("form");
const [draw, status, error] = ["draw", "status", "error"].map((id) => document.getElementById(id));
const drawn = document.getElementById("drawn");
const KEPT = 12; // answers on the page

function copy(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

function listed(parent, name, texts) {
  parent.append(...texts.map(([text, kind]) => {
    const item = document.createElement(name);
    item.textContent = text;
    if (kind) item.className = kind;
    return item;
  }));
}

function show(card, answer) {
  const figure = copy("card");
  const bytes = Uint8Array.from(atob(card.png), (letter) => letter.charCodeAt(0));
  const address = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  const image = figure.querySelector("img");
  image.addEventListener("load", () => {
    if (image.naturalWidth < 128) image.className = "exact";
  });
  image.src = address;
  image.alt = `${answer.title}: ${card.title}`;
  figure.querySelector(".whole").href = address;
  figure.classList.toggle("kept", card.kept);
  figure.querySelector("h3").textContent = card.title;
  figure.querySelector(".edit").textContent = card.edit && `\u201c${card.edit}\u201d`;
  for (const [name, value] of Object.entries(card.scores)) {
    const row = document.createElement("div");
    listed(row, "dt", [[name]]);
    listed(row, "dd", [[value.toFixed(3)]]);
    figure.querySelector(".scores").append(row);
  }
  listed(figure.querySelector(".marks"), "li",
    card.marks.map(([text, met]) => [text, met ? "met" : "missing"]));
  const download = figure.querySelector(".download");
  download.href = address;
  download.download = card.file;
  download.setAttribute("aria-label", `Download ${card.file}`);
  return figure;
}

function add(answer) {
  document.getElementById("nothing")?.remove();
  const section = copy("answer");
  section.querySelector("h2").textContent = answer.title;
  section.querySelector(".note").textContent = answer.notes.join("; ");
  section.querySelector(".cards").append(...answer.cards.map((card) => show(card, answer)));
  drawn.prepend(section);
  while (drawn.children.length > KEPT) {
    const last = drawn.lastElementChild;
    last.querySelectorAll(".whole").forEach((link) => URL.revokeObjectURL(link.href));
    last.remove();
  }
  return section;
}

async function asked() {
  const values = Object.fromEntries(new FormData(form));
  const answer = await fetch("draw", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(values),
  });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (draw.disabled) return;
  const begun = Date.now();
  const say = () => {
    const seconds = Math.round((Date.now() - begun) / 1000);
    status.textContent = `Drawing, or waiting for others: ${seconds} s`;
  };
  error.textContent = "";
  draw.disabled = true;
  say();
  const clock = setInterval(say, 1000);
  try {
    const section = add(await asked());
    if (window.matchMedia("(max-width: 760px)").matches) section.scrollIntoView();
  } catch (fault) {
    const gone = fault instanceof TypeError;
    error.textContent = gone ? "The server does not answer: is it still running?" : fault.message;
  } finally {
    clearInterval(clock);
    status.textContent = "";
    draw.disabled = false;
  }
});

for (const button of document.querySelectorAll(".example")) {
  button.addEventListener("click", () => {
    form.elements.prompt.value = button.textContent;
  });
}

document.getElementById("another").addEventListener("click", () => {
  if (draw.disabled) return;
  form.elements.seed.value = Math.floor(Math.random() * 2 ** 32);
  form.requestSubmit();
});

form.elements.prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
