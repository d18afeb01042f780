"use strict";
// A button sorts the children of what it controls by one of their numbers, downwards first. A
// button without a number restores the page's order.
for (const button of document.querySelectorAll("button[aria-controls]")) {
  const list = document.getElementById(button.getAttribute("aria-controls"));
  const order = [...list.children];
  const others = document.querySelectorAll(`button[aria-controls="${list.id}"]`);
  button.addEventListener("click", () => {
    const by = button.dataset.by;
    const down = button.dataset.order !== "down";
    for (const other of others) {
      delete other.dataset.order;
      other.setAttribute("aria-pressed", other === button);
    }
    if (by === undefined) {
      list.append(...order);
      return;
    }
    button.dataset.order = down ? "down" : "up";
    const value = (item) => {
      const text = item.dataset[by];
      return text ? Number(text) * (down ? -1 : 1) : Infinity;
    };
    const pairs = order.map((item) => [value(item), item]);
    pairs.sort(([a], [b]) => (a === b ? 0 : a < b ? -1 : 1));
    list.append(...pairs.map(([, item]) => item));
  });
}
