"use strict";
const box = document.getElementById("find");
if (box) {
  box.closest(".find").style.display = "block";
  box.addEventListener("input", () => {
    const words = box.value.trim().toLowerCase();
    for (const group of document.querySelectorAll(".group")) {
      let shown = 0;
      for (const image of group.querySelectorAll(".image")) {
        image.hidden = !image.dataset.find.includes(words);
        shown += image.hidden ? 0 : 1;
      }
      group.hidden = shown === 0;
    }
  });
}
