"use strict";
// What is left open in the form does not stand in the address.
const ask = document.querySelector("form.ask");
ask.addEventListener("submit", () => {
  for (const field of ask.elements) if (field.name && field.value === "") field.disabled = true;
});
addEventListener("pageshow", () => { for (const field of ask.elements) field.disabled = false; });

// A picture is sent as its bytes alone, without its name, and then searched for with all else that the form says.
const drop = document.getElementById("drop");
if (drop) {
  const state = document.getElementById("status");
  const file = document.getElementById("file");
  const most = Number(document.body.dataset.maxBytes);
  document.getElementById("choose").hidden = false;
  const say = (text, bad = false) => { state.textContent = text; state.classList.toggle("bad", bad); };
  const send = async (picture) => {
    if (picture.size > most) return say(`the file has more than ${most / 2 ** 20} MiB; send a smaller one`, true);
    say("searching …");
    try {
      const answer = await fetch("/picture", {method: "POST", body: picture});
      if (answer.status === 401) return location.reload();
      if (!answer.ok) return say(await answer.text(), true);
      const asked = [...new FormData(ask)].filter(([name, value]) => value && name !== "like" && name !== "picture");
      const address = new URLSearchParams([["picture", (await answer.json()).picture], ...asked]);
      location.href = `/?${address}`;
    } catch {
      say("the page is not served any more, or refused the picture; see its terminal", true);
    }
  };
  file.addEventListener("change", () => { if (file.files.length) send(file.files[0]); file.value = ""; });
  addEventListener("paste", (event) => { if (event.clipboardData.files.length) send(event.clipboardData.files[0]); });
  // Anywhere on the page: a picture dropped beside the field would otherwise take the place of the page.
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
    else say("drop a file", true);
  });
}
