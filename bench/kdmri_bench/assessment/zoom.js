{
  const dialog = document.getElementById("zoom");
  const place = dialog.querySelector(".held-picture"), text = dialog.querySelector("p");
  for (const button of document.querySelectorAll("button.enlarge")) {
    button.addEventListener("click", () => {
      const picture = button.querySelector("img").cloneNode();
      const times = Math.max(2, Math.floor(720 / picture.width));
      picture.width *= times;
      picture.height *= times;
      place.replaceChildren(picture);
      text.textContent = button.parentNode.querySelector("figcaption").textContent;
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
