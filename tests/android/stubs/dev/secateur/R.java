package dev.secateur;

/** What the resource compiler would make; check_resources.py holds the names to the XML. */
public final class R {
    public static final class string {
        public static int secateur_channel, secateur_title, secateur_starting, secateur_ready, secateur_released,
            secateur_pruning, secateur_failed, secateur_stop;
    }
}
