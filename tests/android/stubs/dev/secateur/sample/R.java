package dev.secateur.sample;

/** What the resource compiler would make; check_resources.py holds the names to the XML. */
public final class R {
    public static final class string {
        public static int no_model;
    }

    public static final class layout {
        public static int chat;
    }

    public static final class id {
        public static int conversation, question, send;
    }
}
