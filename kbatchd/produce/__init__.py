"""`kbatchd produce`: the records of files into a route's topic, checked at the door, none twice, none left out."""
