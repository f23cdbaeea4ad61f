// Shortcuts, sliders and one submission at a time. Every page works without it.
"use strict";
(() => {
  const form = document.getElementById("answer");
  const undo = document.getElementById("undo");
  const status = document.querySelector(".status");

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const field = document.getElementById(button.dataset.copy);
      field.select();
      try { await navigator.clipboard.writeText(field.value); } catch { document.execCommand("copy"); }
      button.textContent = "Copied";
    });
  }
  if (!form) return;

  // a slider has no value until it is moved: one that began in the middle would pull every mark there
  for (const slider of form.querySelectorAll("input[type=range]")) {
    const mark = document.getElementById(slider.dataset.for);
    slider.hidden = false;
    const take = () => { mark.value = slider.value; slider.classList.remove("untouched"); };
    slider.addEventListener("input", take);
    slider.addEventListener("click", take);
    mark.addEventListener("input", () => {
      if (mark.value === "") { slider.classList.add("untouched"); return; }
      slider.value = mark.value;
      slider.classList.remove("untouched");
    });
  }

  const show = () => {
    const chosen = form.querySelector("input[name=choice]:checked");
    for (const answer of form.querySelectorAll("[data-side]")) {
      answer.classList.toggle("chosen", Boolean(chosen) && answer.dataset.side === chosen.value);
    }
  };
  form.addEventListener("change", show);
  show();

  let sending = false;
  form.addEventListener("submit", (event) => {
    if (sending) { event.preventDefault(); return; }
    sending = true;
    document.getElementById("send").textContent = "Saving…";
  });
  // a page that comes back from the browser's memory may be sent again
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  const tick = document.getElementById("shortcuts");
  try { tick.checked = localStorage.getItem("shortcuts") !== "off"; } catch { /* no storage, no memory */ }
  tick.addEventListener("change", () => {
    try { localStorage.setItem("shortcuts", tick.checked ? "on" : "off"); } catch { /* the same */ }
  });

  const choose = (value) => {
    const option = form.querySelector(`input[name=choice][value="${value}"]`);
    if (!option) return false;
    option.checked = true;
    option.focus();
    show();
    return true;
  };

  const fields = [...form.querySelectorAll(".criterion")];
  const mark = (digit) => {
    const at = Math.max(0, fields.findIndex((field) => field.contains(document.activeElement)));
    const field = fields[at];
    if (!field) return false;
    if (field.dataset.scale === "slider") {
      const slider = field.querySelector("input[type=range]");
      slider.value = digit === 0 ? 100 : digit * 10;
      slider.dispatchEvent(new Event("input"));
    } else {
      const step = field.querySelector(`input[value="${digit || 10}"]`);
      if (!step) return false;
      step.checked = true;
    }
    const next = fields[at + 1];
    (next ? next.querySelector("input[type=range], input[type=radio]") : document.getElementById("send")).focus();
    return true;
  };

  const keys = { a: "A", 1: "A", b: "B", 2: "B", t: "tie", 0: "tie" };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("textarea, input[type=number], input:not([type])");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey || !event.target.matches("textarea, summary, button, a"))) {
      event.preventDefault();
      form.requestSubmit();
      return;
    }
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !tick.checked) return;
    const key = event.key.toLowerCase();
    if (key === "u" && undo) { event.preventDefault(); undo.requestSubmit(); return; }
    const done = fields.length ? /^[0-9]$/.test(key) && mark(Number(key)) : key in keys && choose(keys[key]);
    if (done) event.preventDefault();
  });
  form.addEventListener("invalid", () => {
    if (status) status.innerHTML = "<p class=\"notice\">Something is not answered yet.</p>";
  }, true);
})();
