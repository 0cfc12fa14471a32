(async () => {
  window.ptinspect = { data, maps: [] };
  try {
    data.campaigns.forEach(drawCampaign);
    data.diffs.forEach(drawDiff);
    data.spaces.forEach(drawSpace);
    const tables = [];
    for (const facts of data.maps) tables.push(await TableMap.of(facts));
    const order = [...data.maps.keys()].sort((a, b) => (data.maps[a].diff === null) - (data.maps[b].diff === null) || a - b);
    for (const i of order) window.ptinspect.maps[i] = drawMap(tables[i], i);
    for (const [i, trace] of data.traces.entries()) await drawTrace(trace, i);
    if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
    document.body.dataset.ready = "yes";
  } catch (error) {
    main.prepend(el("p", { class: "bad" }, `this page cannot be drawn: ${error}`));
    document.body.dataset.ready = "failed";
  }
})();
