// Runs once, when the field for images is there. `props.value` is what the server gets: each file in base64.
const zone = element.querySelector(".x-drop"), told = element.querySelector(".x-drop-told");
const input = element.querySelector("input"), list = element.querySelector("ul");
const most = Number(zone.dataset.most), room = Number(zone.dataset.bytes);
let taken = [];

function show() {
  list.replaceChildren(...taken.map((picture, place) => {
    const item = document.createElement("li"), image = document.createElement("img"), remove = document.createElement("button");
    image.src = picture.url;
    image.alt = "第 " + (place + 1) + " 张图片";
    image.onerror = () => { image.alt = "第 " + (place + 1) + " 张（无法预览）"; };
    remove.type = "button";
    remove.textContent = "移除";
    remove.setAttribute("aria-label", "移除第 " + (place + 1) + " 张图片");
    remove.onclick = () => { URL.revokeObjectURL(picture.url); taken = taken.filter(other => other !== picture); say(""); show(); input.focus(); };
    item.append(image, remove);
    return item;
  }));
  props.value = taken.map(picture => picture.base64);
}

function say(text) { told.textContent = text; }

function read(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
}

async function add(files) {
  const refused = new Set();
  for (const file of files) {
    const bytes = taken.reduce((sum, picture) => sum + picture.size, file.size);
    if (!file.type.startsWith("image/")) refused.add("不是图片的文件没有添加");
    else if (!file.size) refused.add("空文件没有添加");
    else if (taken.length >= most) refused.add("超过 " + most + " 张的没有添加");
    else if (bytes > room) refused.add("总量超过上限的没有添加，请换小一些的图片");
    else taken.push({ size: file.size, base64: await read(file), url: URL.createObjectURL(file) });
  }
  say([...refused].join("；"));
  show();
}

input.addEventListener("change", async () => { await add([...input.files]); input.value = ""; });
zone.addEventListener("dragover", event => { event.preventDefault(); zone.classList.add("x-over"); });
zone.addEventListener("dragleave", () => zone.classList.remove("x-over"));
zone.addEventListener("drop", event => { event.preventDefault(); zone.classList.remove("x-over"); add([...event.dataTransfer.files]); });
document.addEventListener("paste", event => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length && zone.checkVisibility()) { event.preventDefault(); add(files); }
});
