// Plain English for `doctor --reuse`: three texts of more than 150 tokens each, whatever the tokenizer.

export const TEXTS = [
  `The harbour lies at the end of a long valley, and for most of the year the wind comes down from the hills and out over the
water. In the morning the boats leave one after another, as soon as there is light enough to see the buoys, and in the
afternoon they come back with the tide. On the quay there are two cranes, a shed in which the ice is kept, and a scale on
which everything is weighed before it is sold. The oldest of the fishermen remembers the time when there was no road, and
letters came by ship once a week. He says that the winters were colder then, and that nobody locked a door. His daughter
keeps the books of the harbour. She writes down each boat, the hour at which it left, the hour at which it returned, and
what it brought; and at the end of the month she adds it all up, twice, because a mistake in a sum is like a hole in a net:
small at first, and then everything is gone.`,
  `To find out how many tiles are needed for a floor, measure its length and its width and multiply the two. Suppose that the
room is six metres long and four metres wide: then the floor has an area of twenty-four square metres. A tile that is thirty
centimetres on each side covers nine hundredths of a square metre, so that a little more than two hundred and sixty-six of
them would cover the floor, if none had to be cut. Along the walls some will have to be cut, and now and then one breaks. It
is therefore wise to order one tenth more, and to keep what is left for repairs. If the tiles have a pattern, draw the room on
squared paper first. Begin in the middle and not in a corner, since hardly any room has corners that are quite square; then
the rows that are cut are the same on both sides, and nobody will see that one wall is longer than the other.`,
  `Two people who work on the same text at the same time need a rule for who writes where. The simplest one is that each has a
part of his own, and that nobody touches the part of another. But then each of them has to wait until the others are done
before he can see what they have found, and much is written twice. A better rule is that everybody sees everything at once,
while it is being written, and may refer to it. If one of them notices that another has begun to count the cases with an even
number, he takes the odd ones; if he finds a mistake, he says so, and the other one corrects it before he builds on it. What
remains is the question of order. Two remarks that were made at the same moment have no order of their own, and whoever
reads them later will read one of them first. That is no harm as long as neither of them depends on the other.`,
] as const
