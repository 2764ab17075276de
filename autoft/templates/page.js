"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")].filter((plot) => plot.dataset.figure in figures);
  const coarse = matchMedia("(pointer: coarse)").matches;
  const themes = ["auto", "light", "dark"];
  let shown = "auto";
  let drawn = false;
  let printing = false;
  root.classList.add("js");

  // Of a page in a file, a browser may refuse to remember anything: then the choice lasts as long as the page.
  const remembered = (action) => { try { return action(); } catch { return null; } };

  // Colours are names of the page's variables, as $ink; they stand under keys that end in "color".
  function painted(value, key) {
    if (Array.isArray(value)) return value.map((entry) => painted(entry, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, entry]) => [name, painted(entry, name)]));
    }
    if (typeof value === "string" && value.startsWith("$") && /color$/i.test(key || "")) {
      return getComputedStyle(root).getPropertyValue("--" + value.slice(1)).trim() || "#888888";
    }
    return value;
  }

  function parts(plot) {
    const figure = figures[plot.dataset.figure];
    const layout = painted(figure.layout);
    layout.font.family = layout.hoverlabel.font.family = getComputedStyle(document.body).fontFamily;
    const narrow = plot.clientWidth < 480;
    if (coarse) layout.dragmode = false;
    if (printing) {
      const wide = plot.closest("figure").classList.contains("wide");
      const small = plot.closest(".figures").classList.contains("small");
      Object.assign(layout, { autosize: false, width: wide ? 690 : 335, height: wide ? 400 : small ? 260 : 360 });
      layout.legend.font = { ...layout.legend.font, size: 10 };
    } else if (narrow && layout.annotations && plot.dataset.figure === "parallel") {
      layout.width = 820;
      layout.autosize = false;
    }
    return [painted(figure.data), layout];
  }

  function draw() {
    for (const plot of plots) {
      const [data, layout] = parts(plot);
      // Dragging zooms; a longer row of buttons would lie over labels.
      const buttons = { displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };
      // One that has no room must not take the others with it.
      const failed = (error) => { plot.textContent = "No plot: " + error.message + ". The tables have the figures."; };
      try {
        Plotly.react(plot, data, layout, { ...buttons, responsive: !printing, displayModeBar: coarse ? false : "hover" }).catch(failed);
      } catch (error) {
        failed(error);
      }
    }
  }

  function setTheme(theme) {
    shown = theme;
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    const button = document.getElementById("theme");
    button.textContent = "Theme: " + theme;
    if (drawn) draw();
  }

  async function load() {
    const packed = document.getElementById("plotly");
    if (!packed || !plots.length) return;
    if (!("DecompressionStream" in window)) throw new Error("this browser cannot unpack the plots; one of 2023 or later can");
    const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const library = document.createElement("script");
    library.textContent = await new Response(stream).text();
    document.head.append(library);
    if (!window.Plotly) throw new Error("the plots were not allowed to run");
    for (const note of document.querySelectorAll(".plot .wait")) note.remove();
    draw();
    drawn = true;
    root.dataset.plots = "drawn";
  }

  document.getElementById("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf(shown) + 1) % themes.length];
    remembered(() => localStorage.setItem("autoft-theme", next));
    setTheme(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (drawn) draw(); });

  // Paper is light and narrower than the window; what is folded up on the screen is unfolded.
  let folded = [];
  addEventListener("beforeprint", () => {
    printing = true;
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const part of folded) part.open = true;
    root.dataset.theme = "light";
    if (drawn) draw();
  });
  addEventListener("afterprint", () => {
    printing = false;
    for (const part of folded) part.open = false;
    setTheme(shown);
  });

  const before = remembered(() => localStorage.getItem("autoft-theme"));
  setTheme(themes.includes(before) ? before : "auto");
  load().catch((error) => {
    for (const note of document.querySelectorAll(".plot .wait")) note.textContent = "No plot: " + error.message + ". The tables have the figures.";
  });
})();
