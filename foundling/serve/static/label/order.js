// SPDX-License-Identifier: Apache-2.0
// An order under way: answers are placed one after the other, the best first; a tie joins the group before.

export class Order {
  constructor(n, groups = []) {
    this.n = n;
    this.groups = groups.map((group) => [...group]);
    this.tie = false;
  }

  get placed() {
    return this.groups.flat();
  }

  get complete() {
    return this.placed.length === this.n;
  }

  /** Places an answer, or takes it out again. The last one follows of itself. */
  toggle(answer) {
    if (this.rank(answer)) {
      this.groups = this.groups.map((group) => group.filter((one) => one !== answer)).filter((group) => group.length);
      this.tie = false;
      return;
    }
    if (this.tie && this.groups.length) this.groups.at(-1).push(answer);
    else this.groups.push([answer]);
    this.tie = false;
  }

  joinNext() {
    this.tie = this.groups.length > 0 && !this.complete && !this.tie;
  }

  back() {
    const last = this.placed.at(-1);
    if (last !== undefined) this.toggle(last);
  }

  /** From 1; 0 where it has no place yet. */
  rank(answer) {
    return this.groups.findIndex((group) => group.includes(answer)) + 1;
  }

  toString() {
    const text = this.groups.map((group) => group.map((answer) => answer + 1).join(" = ")).join(" > ");
    return this.tie ? `${text} = …` : text;
  }
}
