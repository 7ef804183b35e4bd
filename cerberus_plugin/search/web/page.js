"use strict";
// Keep empty fields of the form out of the address.
const ask = document.querySelector("form.ask");
ask.addEventListener("submit", () => {
  for (const field of ask.elements) if (field.name && field.value === "") field.disabled = true;
});
addEventListener("pageshow", () => { for (const field of ask.elements) field.disabled = false; });

// Upload the bytes of an image without its file name, and then search for it with the other fields of the form.
const drop = document.getElementById("drop");
if (drop) {
  const state = document.getElementById("status");
  const file = document.getElementById("file");
  const most = Number(document.body.dataset.maxBytes);
  document.getElementById("choose").hidden = false;
  const say = (text, bad = false) => { state.textContent = text; state.classList.toggle("bad", bad); };
  const send = async (picture) => {
    if (picture.size > most) return say(`The file has more than ${most / 2 ** 20} MiB. Choose a smaller one.`, true);
    say("Searching …");
    try {
      const answer = await fetch("/picture", {method: "POST", body: picture});
      if (answer.status === 401) return location.reload();
      if (!answer.ok) return say(await answer.text(), true);
      const asked = [...new FormData(ask)].filter(([name, value]) => value && name !== "like" && name !== "picture");
      const address = new URLSearchParams([["picture", (await answer.json()).picture], ...asked]);
      location.href = `/?${address}`;
    } catch {
      say("The upload failed. Check that cerberus serve is running, and see its terminal.", true);
    }
  };
  file.addEventListener("change", () => { if (file.files.length) send(file.files[0]); file.value = ""; });
  addEventListener("paste", (event) => { if (event.clipboardData.files.length) send(event.clipboardData.files[0]); });
  // Accept drops anywhere on the page, since the browser would otherwise open the image instead of the page.
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
    else say("Drop an image file.", true);
  });
}
