// The ranking board as a state and what can be done to it. No document in here: the view draws a state, and asks for the next.
//
// A state is never changed. `cards` are ids in the order of their letters, `tiers` are K lists of cards (1 is best, a tier may be
// empty, several cards of one tier tie), `picked` is the card in hand, `last` the one placed last, `past` what undo returns to.

/** A board on which nothing is placed, or the tiers of a draft. There is no order that nobody chose. */
export function start(cards, tiers = []) {
  const known = cards.map((_, tier) => (tiers[tier] ?? []).filter((card) => cards.includes(card)));
  return { cards: [...cards], tiers: known, picked: null, last: null, past: [] };
}

/** The cards that are not placed yet, in the order of their letters. */
export function tray(state) {
  return state.cards.filter((card) => tierOf(state, card) === null);
}

/** The tier in which a card stands, from 0; null in the tray. */
export function tierOf(state, card) {
  const tier = state.tiers.findIndex((cards) => cards.includes(card));
  return tier < 0 ? null : tier;
}

/** Take a card in hand; taking it again, or null, puts it down. */
export function pick(state, card) {
  return { ...state, picked: card === state.picked ? null : card };
}

/** Put a card (the one in hand) into a tier. */
export function place(state, tier, card = state.picked) {
  if (card === null || tier < 0 || tier >= state.tiers.length) return state;
  if (tierOf(state, card) === tier) return { ...state, picked: null, last: card };
  return moved(state, card, tier);
}

/** Put a card back into the tray. */
export function lift(state, card = state.picked) {
  if (card === null || tierOf(state, card) === null) return { ...state, picked: null };
  return moved(state, card, null);
}

/** Put the card in hand beside the one placed before it. */
export function tie(state) {
  const { picked } = state;
  if (picked === null) return state;
  const own = tierOf(state, picked);
  const above = state.tiers.findLastIndex((cards, tier) => cards.length > 0 && (own === null || tier < own));
  const beside = state.last !== null && state.last !== picked ? tierOf(state, state.last) : above < 0 ? null : above;
  return beside === null ? state : place(state, beside);
}

/** Move the card in hand up (-1) or down (1); from the tray it enters at the top or at the bottom. It stays in hand. */
export function move(state, step) {
  const { picked } = state;
  if (picked === null) return state;
  const own = tierOf(state, picked);
  const tier = own === null ? (step > 0 ? 0 : state.tiers.length - 1) : own + step;
  if (tier < 0 || tier >= state.tiers.length) return state;
  return { ...moved(state, picked, tier), picked };
}

/** The state before the last placing; the card in hand is put down. */
export function undo(state) {
  if (state.past.length === 0) return { ...state, picked: null };
  return { ...state, tiers: state.past.at(-1), past: state.past.slice(0, -1), picked: null, last: null };
}

/** Whether every card is placed. */
export function complete(state) {
  return tray(state).length === 0;
}

/** The order as people write it: "B > A = D > C". `names` gives the letter of a card. */
export function order(state, names) {
  return state.tiers
    .filter((cards) => cards.length > 0)
    .map((cards) => cards.map(names).sort().join(" = "))
    .join(" > ");
}

/** Pairs [above, below] in which the card below has the better rating. `ratings` gives a number, or null where none was given. */
export function contradictions(state, ratings) {
  const placed = state.cards.filter((card) => tierOf(state, card) !== null && ratings(card) !== null);
  return placed.flatMap((above) =>
    placed
      .filter((below) => tierOf(state, above) < tierOf(state, below) && ratings(above) < ratings(below))
      .map((below) => [above, below]),
  );
}

function moved(state, card, tier) {
  const tiers = state.tiers.map((cards) => cards.filter((each) => each !== card));
  if (tier !== null) {
    tiers[tier].push(card);
    tiers[tier].sort((one, other) => state.cards.indexOf(one) - state.cards.indexOf(other));
  }
  return { ...state, tiers, picked: null, last: tier === null ? null : card, past: [...state.past, state.tiers] };
}
