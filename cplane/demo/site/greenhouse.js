const SVG = (hours) => {
  const [width, height, left, bottom] = [1060, 300, 44, 34];
  const low = 12, high = 30;
  const x = (i) => left + (i * (width - left - 10)) / (hours.length - 1);
  const y = (t) => 14 + ((high - t) * (height - bottom - 14)) / (high - low);
  const line = hours.map((t, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(t).toFixed(1)}`).join("");
  const grid = [15, 20, 25, 30].map((t) => `<path d="M${left} ${y(t)}H${width - 10}" stroke="#e3e0d5"/><text x="0" y="${y(t) + 5}">${t} °C</text>`);
  const ticks = hours.map((_, i) => (i % 4 ? "" : `<text x="${x(i)}" y="${height - 8}" text-anchor="middle">${String(i).padStart(2, "0")}:00</text>`));
  const peak = hours.indexOf(Math.max(...hours));
  return `<svg viewBox="0 0 ${width} ${height}" font-size="13" fill="#64736b" font-family="inherit">
    <defs><linearGradient id="warm" x1="0" y1="0" x2="0" y2="1"><stop stop-color="#2f6b4f" stop-opacity=".28"/><stop offset="1" stop-color="#2f6b4f" stop-opacity="0"/></linearGradient></defs>
    ${grid.join("")}${ticks.join("")}
    <path d="${line}L${x(hours.length - 1)} ${height - bottom}L${left} ${height - bottom}Z" fill="url(#warm)"/>
    <path d="${line}" fill="none" stroke="#2f6b4f" stroke-width="3" stroke-linejoin="round"/>
    <circle cx="${x(peak)}" cy="${y(hours[peak])}" r="6" fill="#e8a33d" stroke="#fff" stroke-width="2"/>
    <text x="${x(peak)}" y="${y(hours[peak]) - 14}" text-anchor="middle" fill="#17392b" font-weight="600">${hours[peak].toFixed(1)} °C</text>
  </svg>`;
};

const stat = ({ name, value, unit, note }) =>
  `<div class="panel stat"><div class="name">${name}</div><div class="value">${value} <small>${unit}</small></div><div class="note">${note}</div></div>`;

const bed = ({ name, plants, moisture }) =>
  `<tr><td>${name}</td><td>${plants}</td><td><span class="bar"><i class="${moisture < 40 ? "low" : ""}" style="width:${moisture}%"></i></span>&nbsp; ${moisture} %</td><td>${moisture < 40 ? "water today" : "fine"}</td></tr>`;

read();
async function read() {
  const today = await (await fetch("/greenhouse.json")).json();
  const board = document.getElementById("board");
  board.innerHTML =
    today.stats.map(stat).join("") +
    `<div class="panel chart"><h2>Warmth under glass</h2>${SVG(today.hours)}</div>` +
    `<div class="panel beds"><h2>Beds</h2><table id="beds"><tr><th>bed</th><th>plants</th><th>moisture</th><th>to do</th></tr>${today.beds.map(bed).join("")}</table></div>`;
  board.removeAttribute("aria-busy");
}
