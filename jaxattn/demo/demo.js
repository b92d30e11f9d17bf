const of = (id) => document.getElementById(id);
const [drop, file, status, result] = ["drop", "file", "status", "result"].map(of);
const maxBytes = Number(file.dataset.maxBytes);
let asked = 0;

const say = (text, error = false) => {
  status.textContent = text;
  status.classList.toggle("error", error);
};

// Why a file is refused before it is sent; "" if it is not. The server looks again.
const refusal = (chosen) => {
  if (chosen.type && !chosen.type.startsWith("image/")) return `${chosen.name} is no image.`;
  if (chosen.size > maxBytes) return `${chosen.name} is too large: ${maxBytes >> 20} MB are allowed.`;
  return "";
};

const classify = async (chosen) => {
  if (!chosen) return;
  const turn = ++asked;
  const refused = refusal(chosen);
  if (refused) {
    result.hidden = true;
    document.body.classList.remove("busy");
    return say(refused, true);
  }
  say(`Looking at ${chosen.name} …`);
  document.body.classList.add("busy");
  let answer;
  try {
    const response = await fetch("classify", { method: "POST", body: chosen });
    answer = await response.json();
  } catch {
    answer = { error: "There is no answer. Is the server still running?" };
  }
  if (turn !== asked) return; // another image was chosen meanwhile
  document.body.classList.remove("busy");
  result.hidden = Boolean(answer.error);
  if (answer.error) return say(answer.error, true);
  say(chosen.name);
  showProbabilities(answer);
  showMaps(answer);
};

const showProbabilities = ({ predicted, probabilities }) => {
  of("predicted").textContent = predicted;
  of("bars").replaceChildren(
    ...probabilities.map(([name, value]) => {
      const row = document.createElement("tr");
      row.classList.toggle("chosen", name === predicted);
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      const bar = document.createElement("i");
      bar.style.width = `${100 * value}%`;
      const cells = [0, 1].map(() => document.createElement("td"));
      cells[0].append(bar);
      cells[1].textContent = `${(100 * value).toFixed(1)}%`;
      row.append(head, ...cells);
      return row;
    }),
  );
};

const showMaps = ({ image, maps }) => {
  const seen = of("image");
  seen.onload = () => {
    // As wide as its column, but no higher than the window.
    of("stage").style.maxWidth = `${(75 * seen.naturalWidth) / seen.naturalHeight}vh`;
  };
  seen.src = image;
  const choices = [...maps, { title: "None", note: "", src: "" }];
  const before = document.querySelector("#maps input:checked")?.value;
  const chosen = choices.some(({ title }) => title === before) ? before : choices[0].title;
  of("maps").replaceChildren(
    document.querySelector("#maps legend"),
    ...choices.map((map) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      const name = document.createElement("span");
      Object.assign(input, { type: "radio", name: "map", value: map.title });
      input.checked = map.title === chosen;
      input.addEventListener("change", () => showMap(map));
      name.textContent = map.title;
      label.append(input, name);
      return label;
    }),
  );
  showMap(choices.find(({ title }) => title === chosen));
};

const showMap = ({ title, note, src }) => {
  const overlay = of("overlay");
  overlay.hidden = !src;
  if (src) overlay.src = src;
  overlay.alt = src ? `${title} over the image` : "";
  of("note").textContent = note;
};

const setOpacity = () => {
  of("overlay").style.opacity = of("opacity").value / 100;
  of("percent").textContent = `${of("opacity").value}%`;
};

file.addEventListener("change", () => {
  classify(file.files[0]);
  file.value = ""; // so that the same file can be chosen again
});
of("opacity").addEventListener("input", setOpacity);
setOpacity();
// Anywhere on the page: a file that misses the field would replace the page.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  classify(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => classify(event.clipboardData.files[0]));
