
document.querySelectorAll("table.sortable").forEach(function (table) {
  var body = table.tBodies[0];
  function value(row, column) {
    var text = row.cells[column].textContent.trim(), number = parseFloat(text.replace(/,/g, ""));
    if (text === "–") { return null; }
    return row.cells[column].className !== "figure" || Number.isNaN(number) ? text : number;
  }
  Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.append.apply(button, Array.from(head.childNodes));
    head.append(button);
    button.addEventListener("click", function () {
      var down = head.getAttribute("aria-sort") === "ascending";
      var sign = down ? -1 : 1;
      table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      Array.from(body.rows).sort(function (first, second) {
        var one = value(first, column), two = value(second, column);
        if (one === null || two === null) { return (one === null) - (two === null); }
        if (typeof one !== typeof two) { return typeof one === "number" ? -1 : 1; }
        return sign * (typeof one === "number" ? one - two : one.localeCompare(two, "en", { numeric: true }));
      }).forEach(function (row) { body.append(row); });
    });
  });
});
