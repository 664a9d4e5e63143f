"use strict";
// The page is complete without this script, which makes the charts zoomable, shows one episode at a time and paints
// the heat map. Data is inserted as text only.
(() => {
  const findAll = (root, selector) => [...root.querySelectorAll(selector)];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const figure = (value) => String(Number(value.toPrecision(4)));

  function svgElement(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  // Charts: the drawing of charts.html, for the steps in view.

  function ticks(low, high, most, whole) {
    const power = 10 ** Math.floor(Math.log10((high - low) / most));
    let step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size * most >= (high - low) * 0.999999);
    if (whole) step = Math.max(step, 1);
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
    const decimals = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
    const plain = decimals <= 5 && Math.max(...found.map(Math.abs), 0) < 1e6;
    return found.map((value) => [value, plain ? value.toFixed(decimals) : value.toExponential(1)]);
  }

  function makeZoomable(chart, names) {
    const data = JSON.parse(chart.querySelector("script").textContent);
    const { left, top, right, bottom, width } = data.box;
    const colour = (run) => `run-${run % data.looks.colours}`;
    const [svg, plot, axes] = [chart.querySelector("svg"), chart.querySelector(".plot"), chart.querySelector(".axes")];
    const [readout, reset] = [chart.querySelector("output"), chart.querySelector("button")];
    const steps = [...new Set(data.lines.flatMap((line) => line.points.map(([step]) => step)))].sort((a, b) => a - b);
    const whole = data.view;
    let view = whole, cursor = null, pressed = null;

    const x = (step) => left + ((step - view[0]) / (view[1] - view[0])) * (right - left);
    const stepAt = (event) => {
      const box = svg.getBoundingClientRect();
      const place = clamp(((event.clientX - box.left) / box.width) * width, left, right);
      return view[0] + ((place - left) / (right - left)) * (view[1] - view[0]);
    };
    const hover = (event) => {
      const [at, seen] = [stepAt(event), steps.filter((step) => step >= view[0] && step <= view[1])];
      if (seen.length) show(seen.reduce((a, b) => (Math.abs(b - at) < Math.abs(a - at) ? b : a)));
    };

    // Includes the neighbour beyond each edge, so that lines reach the edge.
    const inView = (points) => points.filter((_, place) =>
      (points[place + 1] ?? points[place])[0] >= view[0] && (points[place - 1] ?? points[place])[0] <= view[1]);

    function draw() {
      const lines = data.lines.map((line) => ({ ...line, points: inView(line.points) }));
      const values = lines.flatMap((line) => line.points.map(([, value]) => value));
      let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
      const pad = (high - low || Math.abs(high) * 0.2 || 1) * 0.06;
      [low, high] = [low - pad, high + pad];
      const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
      axes.replaceChildren();
      for (const [value, label] of ticks(low, high, 5, false)) {
        axes.append(svgElement("path", { class: "grid", d: `M${left} ${y(value)}H${right}` }));
        const text = svgElement("text", { x: left - 6, y: y(value), dy: 4, "text-anchor": "end" });
        text.textContent = label;
        axes.append(text);
      }
      for (const [value, label] of ticks(view[0], view[1], 6, true)) {
        const text = svgElement("text", { x: x(value), y: bottom + 15, "text-anchor": "middle", class: "step" });
        text.textContent = label;
        axes.append(text);
      }
      plot.replaceChildren();
      for (const { run, series, points } of lines) {
        const d = points.map(([step, value], place) => `${place ? "L" : "M"}${x(step)} ${y(value)}`).join("");
        plot.append(svgElement("path", { class: `line ${colour(run)} dash-${series}`, d }));
        const every = points.length <= 13 ? 1 : Math.ceil(points.length / 6);
        points.forEach(([step, value], place) => {
          if ((place + run) % every) return;
          const look = { class: `mark ${colour(run)}`, href: `#mark-${run % data.looks.marks}`, x: x(step), y: y(value) };
          plot.append(svgElement("use", look));
        });
      }
      for (const [run, step, value] of data.best) {
        plot.append(svgElement("use", { class: `best ${colour(run)}`, href: "#star", x: x(step), y: y(value) }));
      }
      reset.hidden = view === whole;
      point();
    }

    function point() {
      findAll(plot, ".cursor").forEach((line) => line.remove());
      if (cursor === null) return;
      plot.append(svgElement("path", { class: "cursor", d: `M${x(cursor)} ${top}V${bottom}` }));
      const said = data.lines.flatMap(({ run, series, points }) => {
        const at = points.find(([step]) => step === cursor);
        const name = [data.series[series], ...(names.length > 1 ? [names[run]] : [])].join(", ");
        return at ? [`${name} ${figure(at[1])}`] : [];
      });
      readout.textContent = `step ${cursor}: ${said.join("; ") || "no value"}`;
    }

    function zoom(from, to) {
      const wide = Math.max(to - from, 1);
      const begin = clamp((from + to - wide) / 2, whole[0], Math.max(whole[1] - wide, whole[0]));
      view = wide >= whole[1] - whole[0] ? whole : [begin, begin + wide];
      draw();
    }
    const scale = (factor, around) => zoom(around - (around - view[0]) * factor, around + (view[1] - around) * factor);
    const show = (step) => {
      cursor = step;
      const wide = view[1] - view[0];
      if (step < view[0]) zoom(step, step + wide);
      else if (step > view[1]) zoom(step - wide, step);
      else point();
    };
    const back = () => zoom(...whole);

    svg.setAttribute("tabindex", "0");
    svg.setAttribute("role", "application");
    svg.setAttribute("aria-roledescription", "zoomable chart");
    svg.setAttribute("aria-describedby", "chart-help");
    svg.addEventListener("keydown", (event) => {
      const place = steps.indexOf(cursor === null ? steps[0] : cursor), move = cursor === null ? 0 : 1;
      const keys = {
        ArrowRight: () => show(steps[Math.min(place + move, steps.length - 1)]),
        ArrowLeft: () => show(steps[Math.max(place - move, 0)]),
        Home: () => show(steps[0]),
        End: () => show(steps[steps.length - 1]),
        "+": () => scale(0.5, cursor ?? (view[0] + view[1]) / 2),
        "=": () => scale(0.5, cursor ?? (view[0] + view[1]) / 2),
        "-": () => scale(2, cursor ?? (view[0] + view[1]) / 2),
        0: back,
        Escape: back,
      };
      if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
    });
    // The wheel zooms only if the chart has the focus, so that it otherwise scrolls the page.
    svg.addEventListener("wheel", (event) => {
      if (document.activeElement !== svg) return;
      event.preventDefault();
      scale(event.deltaY > 0 ? 1.25 : 0.8, stepAt(event));
    }, { passive: false });
    svg.addEventListener("pointerdown", (event) => {
      pressed = { step: stepAt(event), x: event.clientX };
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      findAll(plot, ".band").forEach((band) => band.remove());
      if (pressed === null) return hover(event);
      const [from, to] = [x(pressed.step), x(stepAt(event))].sort((a, b) => a - b);
      plot.append(svgElement("rect", { class: "band", x: from, y: top, width: to - from, height: bottom - top }));
    });
    svg.addEventListener("pointerup", (event) => {
      findAll(plot, ".band").forEach((band) => band.remove());
      if (pressed === null) return;
      const [from, to] = [pressed.step, stepAt(event)].sort((a, b) => a - b);
      if (Math.abs(event.clientX - pressed.x) > 5) zoom(from, to);
      pressed = null;
    });
    svg.addEventListener("pointercancel", () => { pressed = null; });
    svg.addEventListener("dblclick", back);
    reset.addEventListener("click", () => { back(); svg.focus(); });
  }

  // Episodes

  function split(text) {
    if (!text.dataset.pieces || text.querySelector(".token")) return;
    const numbers = (name) => text.dataset[name].split(" ").map(Number);
    const [whole, before, after] = [text.textContent, numbers("before"), numbers("after")];
    let from = 0;
    text.replaceChildren(...numbers("pieces").map((length, place) => {
      const token = document.createElement("span");
      token.className = "token";
      token.textContent = whole.slice(from, (from += length));
      [token.before, token.after] = [before[place] / 100, after[place] / 100];
      token.title = `${token.before.toFixed(2)} nats before, ${token.after.toFixed(2)} after`;
      return token;
    }));
  }

  function paint(token, mode, full) {
    const nats = mode === "difference" ? token.after - token.before : token[mode];
    const kind = mode === "difference" ? (nats > 0 ? "harder" : "easier") : "hot";
    const heat = mode === "off" ? 0 : Math.min(Math.abs(nats) / full, 1);
    token.className = mode === "off" || (mode === "difference" && heat < 0.02) ? "token" : `token ${kind}`;
    token.style.setProperty("--heat", heat.toFixed(3));
  }

  function makePaged(section) {
    const episodes = findAll(section, ".episode");
    if (!episodes.length) return;
    const [select, filter] = [section.querySelector("#episode"), section.querySelector("#run")];
    const [readout, position] = [section.querySelector("#readout"), section.querySelector("#position")];
    const [heat, viewer] = [section.querySelector("fieldset"), section.querySelector("#viewer")];
    let current = null, here = -1;

    const listed = () => episodes.filter((episode) => !filter.value || episode.dataset.run === filter.value);
    const mode = () => section.querySelector("input[name=heat]:checked").value;
    const tokens = () => findAll(current, ".token").filter((token) => token.textContent);

    function repaint() {
      tokens().forEach((token) => paint(token, mode(), Number(viewer.dataset.full)));
      findAll(section, ".scale").forEach((scale) => {
        scale.hidden = mode() === "off" || scale.classList.contains("difference") !== (mode() === "difference");
      });
    }

    function show(episode, linked) {
      current = episode;
      here = -1;
      for (const other of episodes) other.hidden = other !== episode;
      findAll(episode, ".text").forEach(split);
      heat.disabled = !episode.querySelector(".token");
      readout.textContent = heat.disabled ? "No heat map for this episode." : "Point at a token, or press comma or full stop.";
      repaint();
      select.value = episode.id;
      const shown = listed();
      position.textContent = `Episode ${shown.indexOf(episode) + 1} of ${shown.length}`;
      if (linked) history.replaceState(null, "", `#${episode.id}`);
    }

    function turn(by) {
      const shown = listed();
      show(shown[(shown.indexOf(current) + by + shown.length) % shown.length], true);
    }

    function say(token) {
      findAll(current, ".here").forEach((other) => other.classList.remove("here"));
      token.classList.add("here");
      const change = token.after - token.before;
      readout.textContent = `${JSON.stringify(token.textContent)}: ${token.before.toFixed(2)} nats before, ` +
        `${token.after.toFixed(2)} after (${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(2)})`;
    }

    function walk(by) {
      const all = tokens();
      if (!all.length) return;
      here = clamp(here + by, 0, all.length - 1);
      say(all[here]);
      all[here].scrollIntoView({ block: "nearest" });
    }

    function byAddress() {
      const named = episodes.find((episode) => `#${episode.id}` === location.hash);
      if (!named) return false;
      if (!listed().includes(named)) narrow("");
      show(named, false);
      return true;
    }

    function narrow(run) {
      filter.value = run;
      for (const option of select.options) {
        option.hidden = option.disabled = !listed().some((episode) => episode.id === option.value);
      }
    }

    findAll(section, ".controls").forEach((controls) => { controls.hidden = false; });
    section.querySelector("#previous").addEventListener("click", () => turn(-1));
    section.querySelector("#next").addEventListener("click", () => turn(1));
    select.addEventListener("change", () => show(document.getElementById(select.value), true));
    filter.addEventListener("change", () => {
      narrow(filter.value);
      show(listed().includes(current) ? current : listed()[0], true);
    });
    heat.addEventListener("change", repaint);
    viewer.setAttribute("tabindex", "0");
    viewer.addEventListener("mouseover", (event) => {
      const token = event.target.closest(".token");
      if (token) {
        here = tokens().indexOf(token);
        say(token);
      }
    });
    section.addEventListener("keydown", (event) => {
      if (event.target.closest("select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
      const keys = { ArrowRight: () => turn(1), ArrowLeft: () => turn(-1), ".": () => walk(1), ",": () => walk(-1) };
      if (!(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
    addEventListener("hashchange", byAddress);
    if (!byAddress()) show(episodes[0], false);
    else current.scrollIntoView();
  }

  const charts = document.getElementById("curves");
  findAll(charts, ".chart").forEach((chart) => makeZoomable(chart, JSON.parse(charts.dataset.runs)));
  makePaged(document.getElementById("episodes"));
  findAll(document, ".scripted").forEach((part) => { part.hidden = false; });
})();
